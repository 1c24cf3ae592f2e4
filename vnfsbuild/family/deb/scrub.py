"""What a Debian root must never publish: identities, secrets, caches, logs and copies of them."""

from __future__ import annotations

import fnmatch
import os
import re
import stat
from contextlib import suppress
from pathlib import Path

from vnfsbuild.host.fs import walk

# Shell patterns over absolute paths; `/**` at the end means everything below. A path that matches is removed when a
# root is built, and keeps what the version had when a capsule is edited.
VOLATILE: tuple[str, ...] = (
    "/etc/machine-id",
    "/var/lib/dbus/machine-id",
    "/etc/ssh/ssh_host_*_key",
    "/etc/ssh/ssh_host_*_key.pub",
    "/var/lib/systemd/random-seed",
    "/var/lib/systemd/credential.secret",
    "/var/lib/urandom/random-seed",
    "/etc/resolv.conf",
    "/etc/passwd-",
    "/etc/shadow-",
    "/etc/group-",
    "/etc/gshadow-",
    "/etc/subuid-",
    "/etc/subgid-",
    "/etc/.pwd.lock",
    "/var/lib/apt/lists/**",
    "/var/lib/apt/periodic/**",
    "/var/cache/apt/**",
    "/var/cache/debconf/*-old",
    "/var/lib/dpkg/*-old",
    "/var/lib/dpkg/lock",
    "/var/lib/dpkg/lock-frontend",
    "/var/lib/dpkg/triggers/Lock",
    "/var/cache/ldconfig/aux-cache",
    "/var/log/apt/**",
    "/var/log/dpkg.log*",
    "/var/log/alternatives.log*",
    "/var/log/bootstrap.log",
    "/var/log/journal/**",
    "/root/.bash_history",
    "/root/.lesshst",
    "/root/.viminfo",
    "/root/.cache/**",
    "/tmp/**",  # noqa: S108
    "/var/tmp/**",  # noqa: S108
    "/run/**",
    "/dev/**",
)
_VOLATILE = re.compile("|".join(fnmatch.translate(pattern) for pattern in VOLATILE))
# A file must be there for a node's own, or the host's, to be laid over: they stay, empty.
_EMPTIED = frozenset({"/etc/machine-id", "/etc/resolv.conf"})
# Directories of which dpkg, apt and systemd expect that they are there.
_KEPT_DIRECTORIES = frozenset(
    {"/var/lib/apt/lists/partial", "/var/cache/apt/archives", "/var/cache/apt/archives/partial"}
)


def is_volatile(path: str) -> bool:
    """Whether `path` matches one of VOLATILE."""
    return _VOLATILE.match(path) is not None


def scrub(root: Path) -> tuple[str, ...]:
    """Remove from the tree at `root` what must never be published, and return the paths that went or were emptied.

    /etc/machine-id and /etc/resolv.conf stay as empty files: a read-only root needs them to lay the node's own over.
    Device nodes below /dev are removed, for every node mounts its own there. The times of the directories that lost
    something are kept.
    """
    found = [(path, info) for path, info in walk(root) if is_volatile(path)]
    gone = []
    for path, info in sorted(found, key=lambda item: os.fsencode(item[0]), reverse=True):
        if path in _EMPTIED and stat.S_ISREG(info.st_mode):
            if info.st_size:
                os.truncate(f"{root}{path}", 0)
                os.utime(f"{root}{path}", ns=(info.st_mtime_ns, info.st_mtime_ns))
                gone.append(path)
        elif path not in _KEPT_DIRECTORIES:
            _remove(f"{root}{path}", is_directory=stat.S_ISDIR(info.st_mode))
            gone.append(path)
    return tuple(reversed(gone))


def _remove(full: str, *, is_directory: bool) -> None:
    above = Path(full).parent
    times = above.stat()
    if is_directory:
        with suppress(OSError):  # it holds something that stays
            Path(full).rmdir()
    else:
        Path(full).unlink()
    os.utime(above, ns=(times.st_mtime_ns, times.st_mtime_ns))
