"""The table of contents of a root: one entry per path, and the tree digest that follows from it.

The canonical form is JSON Lines: entries sorted by path as bytes, keys sorted, absent fields left out, no white space,
ASCII only (bytes of a path that are not UTF-8 travel as lone surrogates, PEP 383). The tree digest is the sha256 of
that text: the identity of what a node sees, whatever layers carry it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import Any

import zstandard

from vnfsbuild.errors import TrustError
from vnfsbuild.host.fs import walk, xattr_names

_READ = 1 << 20
# Files that a thread hashes in one go.
_SHARE = 100
_MAX_TEXT = 256 << 20
_HEX = re.compile(r"[0-9a-f]{64}\Z")
# What overlayfs writes beside the files for its own use. Never part of what a node sees.
OVERLAY_XATTR = "trusted.overlay."


class FileType(StrEnum):
    """What a path is; the words stand in the canonical form of a TOC."""

    FILE = "file"
    DIRECTORY = "dir"
    SYMLINK = "symlink"
    CHAR = "char"
    BLOCK = "block"
    FIFO = "fifo"
    SOCKET = "socket"


_TYPES: Mapping[int, FileType] = {
    stat.S_IFREG: FileType.FILE,
    stat.S_IFDIR: FileType.DIRECTORY,
    stat.S_IFLNK: FileType.SYMLINK,
    stat.S_IFCHR: FileType.CHAR,
    stat.S_IFBLK: FileType.BLOCK,
    stat.S_IFIFO: FileType.FIFO,
    stat.S_IFSOCK: FileType.SOCKET,
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One path of a root.

    `path` is absolute within the root ("/" is the root itself). `mtime` is in whole seconds since 1970, `size` in
    bytes (files only), `sha256` hex (files only), `link` the first path of the hard-link group (only where a file has
    more than one name), `device` (major, minor), `xattrs` sorted by name.
    """

    path: str
    type: FileType
    mode: int = 0
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    size: int = 0
    sha256: str = ""
    target: str = ""
    device: tuple[int, int] | None = None
    xattrs: tuple[tuple[str, bytes], ...] = ()
    link: str = ""

    def to_json(self) -> str:
        """One line of the canonical form, without the line end."""
        record: dict[str, Any] = {"path": self.path, "type": self.type.value, "mode": self.mode}
        record |= {"uid": self.uid, "gid": self.gid, "mtime": self.mtime}
        if self.type is FileType.FILE:
            record |= {"size": self.size, "sha256": self.sha256}
        if self.target:
            record["target"] = self.target
        if self.device is not None:
            record["device"] = list(self.device)
        if self.xattrs:
            record["xattrs"] = {name: base64.b64encode(value).decode() for name, value in self.xattrs}
        if self.link:
            record["link"] = self.link
        return json.dumps(record, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str | bytes) -> Entry:
        """Read one line of the canonical form. Raises ValueError, KeyError or TypeError when it is not one."""
        record = json.loads(line)
        device = record.get("device")
        return cls(
            path=record["path"],
            type=FileType(record["type"]),
            mode=record["mode"],
            uid=record["uid"],
            gid=record["gid"],
            mtime=record["mtime"],
            size=record.get("size", 0),
            sha256=record.get("sha256", ""),
            target=record.get("target", ""),
            device=(device[0], device[1]) if device else None,
            xattrs=tuple(sorted((k, base64.b64decode(v)) for k, v in record.get("xattrs", {}).items())),
            link=record.get("link", ""),
        )


def sort_key(path: str) -> bytes:
    """Paths sort as bytes, so that a directory comes before what is in it and no locale matters."""
    return os.fsencode(path)


@dataclass(frozen=True, slots=True)
class Toc:
    """All entries of a root, sorted by path."""

    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Toc:
        """Sort entries, and name each hard-link group by its first path; a group of one is none."""
        ordered = sorted(entries, key=lambda entry: sort_key(entry.path))
        first: dict[str, str] = {}
        count: dict[str, int] = {}
        for entry in ordered:
            if entry.link:
                first.setdefault(entry.link, entry.path)
                count[entry.link] = count.get(entry.link, 0) + 1
        return cls(
            tuple(
                replace(entry, link=first[entry.link] if count[entry.link] > 1 else "") if entry.link else entry
                for entry in ordered
            )
        )

    @property
    def digest(self) -> str:
        """The tree digest, sha256:<hex>."""
        return f"sha256:{hashlib.sha256(self.canonical()).hexdigest()}"

    @property
    def size(self) -> int:
        """Bytes of file content, each hard-link group counted once."""
        return sum(entry.size for entry in self.entries if not entry.link or entry.link == entry.path)

    def canonical(self) -> bytes:
        """The canonical form (see the module)."""
        return "".join(entry.to_json() + "\n" for entry in self.entries).encode("ascii")

    def dump(self) -> bytes:
        """The canonical form as it is stored: one zstd frame."""
        return self.pack(self.canonical())

    @staticmethod
    def pack(canonical: bytes) -> bytes:
        """The stored form of a canonical form, for who has that already: writing it is most of the work."""
        return zstandard.ZstdCompressor(level=3, write_content_size=True).compress(canonical)

    @classmethod
    def load(cls, data: bytes) -> Toc:
        """Read what `dump` wrote. Raises TrustError when it is not that."""
        try:
            with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as reader:
                text = reader.read(_MAX_TEXT + 1)
            if len(text) > _MAX_TEXT:
                raise ValueError("it is too large")
            return cls(tuple(Entry.from_json(line) for line in text.splitlines()))
        except (zstandard.ZstdError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise TrustError(f"this is not a table of contents: {error}", "vnfs verify") from error

    def check(self) -> None:
        """Raise TrustError unless this could have been scanned from a root: for tables that came from elsewhere."""
        before = b""
        for entry in self.entries:
            try:
                key = _checked(entry)
            except (ValueError, TypeError) as error:
                raise TrustError(f"the table of contents has an impossible entry {entry.path!r}: {error}") from error
            if key <= before:
                raise TrustError(f"the table of contents is not in order at {entry.path!r}")
            before = key

    def by_path(self) -> dict[str, Entry]:
        return {entry.path: entry for entry in self.entries}


def _checked(entry: Entry) -> bytes:
    """The sort key of an entry whose every field has a possible value. Raises ValueError or TypeError."""
    for path in (entry.path, entry.link or "/"):
        parts = path.split("/")
        if parts[0] or "\0" in path or (path != "/" and not {"", ".", ".."}.isdisjoint(parts[1:])):
            raise ValueError("it is not a plain absolute path")
    numbers = (entry.mode, entry.uid, entry.gid, entry.mtime, entry.size, *(entry.device or ()))
    if not all(type(number) is int for number in numbers) or not 0 <= entry.mode <= 0o7777:
        raise ValueError("a number is out of range")
    if min(entry.uid, entry.gid, entry.size, *(entry.device or ())) < 0:
        raise ValueError("a number is negative")
    if (entry.type is FileType.FILE) != bool(_HEX.match(entry.sha256)):
        raise ValueError("a file has a sha256, and nothing else has")
    if (entry.type is FileType.SYMLINK) != bool(entry.target) or "\0" in entry.target:
        raise ValueError("a symlink has a target, and nothing else has")
    os.fsencode(entry.target)
    os.fsencode(entry.link)
    return sort_key(entry.path)


def read_entry(root: Path, path: str, info: os.stat_result, *, overlay_xattrs: bool = False) -> Entry:
    """The entry of one path, content unread (`sha256` empty). `link` carries device and inode number where there is
    more than one name: Toc.of turns it into a path."""
    full = f"{root}{path}" if path != "/" else str(root)
    kind = _TYPES[stat.S_IFMT(info.st_mode)]
    xattrs = tuple(
        (name, os.getxattr(full, name, follow_symlinks=False))
        for name in xattr_names(full)
        if overlay_xattrs or not name.startswith(OVERLAY_XATTR)
    )
    is_device = kind in {FileType.CHAR, FileType.BLOCK}
    linked = info.st_nlink > 1 and kind is not FileType.DIRECTORY
    return Entry(
        path=path,
        type=kind,
        mode=stat.S_IMODE(info.st_mode),
        uid=info.st_uid,
        gid=info.st_gid,
        mtime=int(info.st_mtime),
        size=info.st_size if kind is FileType.FILE else 0,
        target=os.readlink(full) if kind is FileType.SYMLINK else "",
        device=(os.major(info.st_rdev), os.minor(info.st_rdev)) if is_device else None,
        xattrs=xattrs,
        link=f"{info.st_dev}:{info.st_ino}" if linked else "",
    )


def scan(root: Path, *, threads: int | None = None, advance: Callable[[int], None] | None = None) -> Toc:
    """Read a whole root: every path, every byte. `advance` hears the number of bytes hashed as it goes."""
    entries = [read_entry(root, path, info) for path, info in walk(root)]
    files = [entry for entry in entries if entry.type is FileType.FILE]

    def hashed(some: list[Entry]) -> list[Entry]:
        done = [replace(entry, sha256=_sha256(f"{root}{entry.path}", entry.size)) for entry in some]
        if advance:
            advance(sum(entry.size for entry in some))
        return done

    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        shares = pool.map(hashed, (files[start : start + _SHARE] for start in range(0, len(files), _SHARE)))
        return Toc.of([entry for entry in entries if entry.type is not FileType.FILE] + list(chain(*shares)))


def _sha256(full: str, size: int) -> str:
    with open(full, "rb", buffering=0) as stream:
        # file_digest makes a large buffer for each file, which takes longer than to hash most of them.
        if size <= _READ:
            return hashlib.sha256(stream.read()).hexdigest()
        return hashlib.file_digest(stream, "sha256").hexdigest()


def losses(wanted: Toc, got: Toc) -> tuple[str, ...]:
    """What a packed layer lost against the tree it was made from, content aside: one line per difference.

    `got` may come from `read_entry` alone, so digests are compared only where both sides have one.
    """
    packed = got.by_path()
    lines = []
    for entry in wanted.entries:
        other = packed.pop(entry.path, None)
        if other is None:
            lines.append(f"{entry.path}: missing")
            continue
        if not other.sha256:
            other = replace(other, sha256=entry.sha256)
        if entry == other:
            continue
        names = [name for name in Entry.__slots__ if getattr(entry, name) != getattr(other, name)]
        lines.append(f"{entry.path}: {', '.join(names)} changed")
    lines += [f"{path}: was not in the tree" for path in packed]
    return tuple(lines)
