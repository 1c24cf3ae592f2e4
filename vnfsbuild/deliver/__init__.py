"""Capsules on their way to people and nodes: edited, moved, compared, verified, and brought to running nodes.

Three packages (`edit`, `transfer`, `livesync`) and two modules (`diff`, `verify`), none of which knows another.
"""
