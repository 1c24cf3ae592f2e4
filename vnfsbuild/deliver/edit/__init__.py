"""Editing: a version is opened (`mounts`), programs run in it (`inside`), its changes become the next one (`publish`).

Those three modules are the face; `delta`, `upper` and `busy` are theirs alone. Nothing is imported here: opening a
capsule takes milliseconds, and must not wait for what only publishing needs.
"""
