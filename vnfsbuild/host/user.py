"""Who we are on this host."""

from __future__ import annotations

import os

from vnfsbuild.errors import NotRoot


def require_root(what: str, otherwise: str = "") -> None:
    """Raise NotRoot unless we are root. `otherwise` says what works without."""
    if os.geteuid() != 0:
        raise NotRoot(f"{what} needs root", otherwise or "run it with sudo")
