"""Write newc cpio archives, the only form the kernel unpacks as an initrd. Same members and epoch, same bytes.

The format is `Documentation/driver-api/early-userspace/buffer-format.rst` of the kernel. It has no extended attributes,
and a file must be smaller than 4 GiB; hard links are not written: each member stands for itself.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO

from vnfsbuild.errors import VnfsError

_MAX_FIELD = 0xFFFFFFFF
_MAX_NAME = 4096  # PATH_MAX: the kernel skips what is longer
_BLOCK = 512
_TRAILER = "TRAILER!!!"


@dataclass(frozen=True, slots=True)
class Member:
    """One path of an archive, relative and without a leading slash; it belongs to root.

    `mode` is a full st_mode (type and permissions), `data` a file's content or a link's target, `device` what a
    device node stands for (major, minor), `mtime` seconds since 1970.
    """

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)
    mtime: int = 0


def directory(path: str, mode: int = 0o755) -> Member:
    return Member(path, stat.S_IFDIR | mode)


def file(path: str, data: bytes, mode: int = 0o644, *, mtime: int = 0) -> Member:
    return Member(path, stat.S_IFREG | mode, data, mtime=mtime)


def symlink(path: str, target: str) -> Member:
    return Member(path, stat.S_IFLNK | 0o777, os.fsencode(target))


def character_device(path: str, major: int, minor: int, mode: int = 0o600) -> Member:
    return Member(path, stat.S_IFCHR | mode, device=(major, minor))


def pack(members: Iterable[Member], out: IO[bytes], *, epoch: int) -> int:
    """Write an archive of `members`, sorted, with parent directories added where none is given. Returns its size.

    No time is later than `epoch`; inode numbers count up from 1. Raises VnfsError for a path that is absolute, has an
    empty, `.` or `..` part or comes twice, and for a file of 4 GiB or more.
    """
    size = 0
    for inode, member in enumerate(_complete(members), start=1):
        size += _write(out, member, inode, min(member.mtime or epoch, epoch))
    size += _write(out, Member(_TRAILER, 0), 0, 0)
    padding = -size % _BLOCK
    out.write(bytes(padding))
    return size + padding


def _complete(members: Iterable[Member]) -> list[Member]:
    found: dict[str, Member] = {}
    for member in members:
        parts = member.path.split("/")
        if any(part in {"", ".", ".."} for part in parts) or "\0" in member.path or member.path == _TRAILER:
            raise VnfsError(f"{member.path!r} cannot be a path in a cpio archive")
        if member.path in found:
            raise VnfsError(f"{member.path!r} comes twice in a cpio archive")
        found[member.path] = member
    for path in list(found):
        parts = path.split("/")
        for depth in range(1, len(parts)):
            parent = "/".join(parts[:depth])
            if not stat.S_ISDIR(found.setdefault(parent, directory(parent)).mode):
                raise VnfsError(f"{path!r} lies below {parent!r}, which is not a directory")
    # As bytes, a directory sorts before what is in it; the kernel makes no parents on its own.
    return sorted(found.values(), key=lambda member: os.fsencode(member.path))


def _write(out: IO[bytes], member: Member, inode: int, mtime: int) -> int:
    name = os.fsencode(member.path) + b"\0"
    if len(name) > _MAX_NAME or len(member.data) > _MAX_FIELD:
        raise VnfsError(f"{member.path[:200]!r} is too long or too large for a cpio archive")
    links = 2 if stat.S_ISDIR(member.mode) else 1
    fields = (inode, member.mode, 0, 0, links, mtime, len(member.data), 0, 0, *member.device, len(name), 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + name
    head += bytes(-len(head) % 4)
    padding = bytes(-len(member.data) % 4)
    out.write(head)
    out.write(member.data)
    out.write(padding)
    return len(head) + len(member.data) + len(padding)
