"""File formats: how trees become bytes. Knows nothing about capsules."""
