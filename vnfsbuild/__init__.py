"""vnfs compiles recipes into versioned capsules and keeps a cluster on them."""

__version__ = "0.1.0"
