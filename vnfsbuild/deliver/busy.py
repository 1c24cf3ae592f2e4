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
    device = os.stat(point).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with suppress(OSError):  # it ended while we looked
                path = _uses(f"/proc/{name}", device, number)
                if path:
                    found.append(User(int(name), _command(name), path))
    return tuple(sorted(found, key=lambda user: user.pid))


def _uses(process: str, device: int, number: str) -> str:
    for link in ("root", "cwd", "exe"):
        with suppress(OSError):
            if os.stat(f"{process}/{link}").st_dev == device:
                return os.readlink(f"{process}/{link}")
    mounts = _mount_ids(process, number)
    if not mounts:
        return ""
    for descriptor in os.listdir(f"{process}/fd"):
        with suppress(OSError):
            # A file of an overlay may show the device of a layer; the id of its mount does not lie.
            info = Path(f"{process}/fdinfo/{descriptor}").read_text()
            if any(line.startswith("mnt_id:") and line.split()[1] in mounts for line in info.splitlines()):
                return os.readlink(f"{process}/fd/{descriptor}")
    return _mapped(process, device, mounts)


def _mount_ids(process: str, number: str) -> frozenset[str]:
    """The ids under which the process sees the file system mounted, anywhere in it."""
    found = set()
    for line in Path(f"{process}/mountinfo").read_text(errors="surrogateescape").splitlines():
        fields = line.split(" ", 5)
        if fields[2] == number:
            found.add(fields[0])
    return frozenset(found)


def _mapped(process: str, device: int, mounts: frozenset[str]) -> str:
    with suppress(OSError):
        for item in os.scandir(f"{process}/map_files"):
            with suppress(OSError):
                if os.stat(item.path).st_dev == device:
                    return os.readlink(item.path)
                descriptor = os.open(item.path, os.O_PATH | os.O_CLOEXEC)
                try:
                    info = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
                finally:
                    os.close(descriptor)
                if any(line.startswith("mnt_id:") and line.split()[1] in mounts for line in info.splitlines()):
                    return os.readlink(item.path)
    return ""


def _command(pid: str) -> str:
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        if words:
            return words[:80]
    return Path(f"/proc/{pid}/comm").read_text().strip()
