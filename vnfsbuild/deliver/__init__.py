"""Capsules on their way to people and nodes: editing, comparing, moving, livesync."""
