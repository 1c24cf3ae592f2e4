"""Bringing capsules to where they are used: editing mounts, portable files, registries, running nodes."""
