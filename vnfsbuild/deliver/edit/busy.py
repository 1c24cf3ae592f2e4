"""Who still uses a mounted file system, in whatever namespace: processes whose root, directory, program or open files
lie on it. Reads /proc only."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class User:
    """A process and one path by which it holds the file system."""

    pid: int
    command: str
    path: str

    def __str__(self) -> str:
        return f"{self.pid} ({self.command}) uses {self.path}"


def users(point: Path) -> tuple[User, ...]:
    """The processes that use what is mounted at `point`, this one aside, by process id."""
    device = point.stat().st_dev
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            with suppress(OSError):  # it ended while we looked
                path = _uses(process, device, os.fspath(point))
                if path:
                    found.append(User(int(process.name), _command(process), path))
    return tuple(sorted(found, key=lambda user: user.pid))


def _uses(process: Path, device: int, point: str) -> str:
    for name in ("root", "cwd", "exe"):
        link = process / name
        with suppress(OSError):
            if link.stat().st_dev == device:
                return os.readlink(link)
    number = f"{os.major(device):02x}:{os.minor(device):02x}"
    mounts = _mount_ids(process, f"{os.major(device)}:{os.minor(device)}")
    if not mounts:
        return ""
    for link in (process / "fd").iterdir():
        with suppress(OSError):
            # A file of an overlay may show the device of a layer; the id of its mount does not lie.
            info = (process / "fdinfo" / link.name).read_text()
            if any(line.startswith("mnt_id:") and line.split()[1] in mounts for line in info.splitlines()):
                return os.readlink(link)
    for line in (process / "maps").read_text(errors="surrogateescape").splitlines():
        fields = line.split(None, 5)
        if len(fields) == 6 and (fields[3] == number or fields[5].startswith(point + "/")):
            return fields[5]
    return ""


def _mount_ids(process: Path, number: str) -> frozenset[str]:
    """The ids under which the process sees the file system mounted, anywhere in it."""
    found = set()
    for line in (process / "mountinfo").read_text(errors="surrogateescape").splitlines():
        fields = line.split(" ", 5)
        if fields[2] == number:
            found.add(fields[0])
    return frozenset(found)


def _command(process: Path) -> str:
    with suppress(OSError):
        words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        if words:
            return words[:80]
    return (process / "comm").read_text().strip()
