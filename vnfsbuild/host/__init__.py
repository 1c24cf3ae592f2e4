"""This machine: processes, mounts, sandboxes, files. Everything that touches the host's state passes here."""
