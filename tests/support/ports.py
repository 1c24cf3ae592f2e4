"""Free TCP ports on loopback."""

from __future__ import annotations

import secrets
import socket
from contextlib import suppress


def free_port() -> int:
    """A port that nobody listens on right now, from below those that the kernel hands out: no outgoing connection takes
    it before it is used."""
    while True:
        port = 16_384 + secrets.randbelow(16_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
