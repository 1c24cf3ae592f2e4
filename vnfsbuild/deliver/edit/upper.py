"""Reads the upper directory of an overlay that is not mounted: what overlayfs wrote, in our words.

Owns the knowledge of overlayfs' own marks (whiteouts, opaque directories, the index of hard links, file handles).
Whatever squashfs or a published version cannot hold is left out here and said in `warnings`.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import stat
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vnfsbuild.deliver.edit.delta import Indexed, Upper, is_whiteout, parent_of
from vnfsbuild.host.fs import walk
from vnfsbuild.store.toc import OVERLAY_XATTR, Entry, FileType, Toc, read_entry

_OPAQUE, _ORIGIN = "trusted.overlay.opaque", "trusted.overlay.origin"
_KEPT_XATTRS = ("user.", "trusted.", "security.")
_MAX_TIME = (1 << 32) - 1
# struct ovl_fb of fs/overlayfs/overlayfs.h: version, magic, length, flags, type, uuid[16], then the file handle, which
# for squashfs is FILEID_INO32_GEN: the inode number and a generation.
_HANDLE = struct.Struct("=BBBBB16sI")
_MAGIC, _INO32_GEN = 0xFB, 1


@dataclass(frozen=True, slots=True)
class Edits:
    """An upper directory as read. `sources` says where the content of each file is, `shared` (by
    sha256) that of files which have several names; `dropped` which paths were left
    out because they must not be published, `warnings` what could not be kept."""

    upper: Upper
    sources: dict[str, Path]
    shared: dict[str, Path]
    dropped: tuple[str, ...]
    warnings: tuple[str, ...]


def read(upper: Path, work: Path, *, below: Toc, volatile: Sequence[str] = ()) -> Edits:
    """Read every path and byte of an upper directory. `volatile` are patterns of paths that are never published:
    where an edit touched them, the version keeps what it had."""
    reader = _Reader(upper, below, volatile)
    for path, info in walk(upper):
        reader.take(path, info)
    indexed = tuple(reader.indexed(work / "index"))
    entries = tuple(reader.settled())
    return Edits(
        Upper(entries, frozenset(reader.opaque), indexed),
        reader.sources,
        reader.shared,
        tuple(reader.dropped),
        tuple(reader.warnings),
    )


class _Reader:
    def __init__(self, root: Path, below: Toc, volatile: Sequence[str]) -> None:
        self._root = root
        self._below = below.by_path()
        self._volatile = compile_patterns(volatile)
        self._entries: list[Entry] = []
        self.opaque: set[str] = set()
        self.sources: dict[str, Path] = {}
        self.shared: dict[str, Path] = {}
        self.dropped: list[str] = []
        self.warnings: list[str] = []

    def take(self, path: str, info: os.stat_result) -> None:
        raw = read_entry(self._root, path, info, overlay_xattrs=True)
        if not is_whiteout(raw) and self._volatile(path):
            self.dropped.append(path)
            return
        if raw.type is FileType.SOCKET:
            self._socket(raw)
            return
        if (_OPAQUE, b"y") in raw.xattrs:
            self.opaque.add(path)
        entry = self._cleaned(raw)
        if entry.type is FileType.FILE:
            self.sources[path] = Path(f"{self._root}{path}")
            entry = replace(entry, sha256=_sha256(self.sources[path]))
        self._entries.append(entry)

    def _socket(self, raw: Entry) -> None:
        """A socket belongs to a process. Where one took the place of something else, that is gone."""
        old = self._below.get(raw.path)
        if old is None or old.type is FileType.SOCKET:
            self.dropped.append(raw.path)
        else:
            self._entries.append(Entry(raw.path, FileType.CHAR, device=(0, 0)))

    def _cleaned(self, raw: Entry) -> Entry:
        kept = tuple(item for item in raw.xattrs if not item[0].startswith(OVERLAY_XATTR))
        lost = [name for name, _ in kept if not name.startswith(_KEPT_XATTRS)]
        if lost:
            self.warnings.append(f"{raw.path}: a layer cannot hold {', '.join(lost)}; it was left out")
        return replace(
            raw,
            mtime=min(max(raw.mtime, 0), _MAX_TIME),
            xattrs=tuple(item for item in kept if item[0] not in lost),
            link=f"upper {raw.link}" if raw.link else "",
        )

    def indexed(self, index: Path) -> Iterable[Indexed]:
        if not index.is_dir():
            return
        for path, info in walk(index):
            if path == "/" or not (stat.S_ISREG(info.st_mode) or stat.S_ISLNK(info.st_mode)):
                continue
            raw = read_entry(index, path, info, overlay_xattrs=True)
            lower = lower_inode(dict(raw.xattrs).get(_ORIGIN, b""))
            if lower is None:
                continue
            entry = replace(self._cleaned(raw), link=f"upper {info.st_dev}:{info.st_ino}")
            if entry.type is FileType.FILE:
                entry = replace(entry, sha256=_sha256(Path(f"{index}{path}")))
                self.shared[entry.sha256] = Path(f"{index}{path}")
            yield Indexed(lower, entry)

    def settled(self) -> Iterable[Entry]:
        """The entries; a directory that changed only because something in it was left out keeps its old time."""
        emptied = {parent_of(path) for path in self.dropped}
        for entry in sorted(self._entries, key=lambda item: os.fsencode(item.path)):
            old = self._below.get(entry.path)
            if entry.path in emptied and old and replace(entry, mtime=old.mtime) == old:
                yield replace(entry, mtime=old.mtime)
            else:
                yield entry


def compile_patterns(patterns: Sequence[str]) -> _Matcher:
    """A test for paths: shell patterns, of which `/**` at the end means everything below."""
    parts = []
    for pattern in patterns:
        tail = "/.*" if pattern.endswith("/**") else ""
        parts.append(fnmatch.translate(pattern.removesuffix("/**")).removesuffix("\\Z").removesuffix("\\z") + tail)
    return _Matcher(re.compile("|".join(f"(?:{part})\\Z" for part in parts), re.DOTALL) if parts else None)


class _Matcher:
    def __init__(self, expression: re.Pattern[str] | None) -> None:
        self._expression = expression

    def __call__(self, path: str) -> bool:
        return self._expression is not None and self._expression.match(path) is not None


def lower_inode(handle: bytes) -> int | None:
    """The inode number in trusted.overlay.origin, where it is a handle of the kind that squashfs gives."""
    if len(handle) < _HANDLE.size:
        return None
    _, magic, _, _, kind, _, inode = _HANDLE.unpack_from(handle)
    return inode if magic == _MAGIC and kind == _INO32_GEN else None


def lower_groups(layer: Path, parent: Toc) -> dict[int, list[str]]:
    """Inode number in the mounted `layer` to the paths of that file, for every hard-linked file of `parent`."""
    inodes: dict[str, int] = {}
    groups: dict[int, list[str]] = {}
    for entry in parent.entries:
        if entry.link:
            if entry.link not in inodes:
                inodes[entry.link] = os.lstat(f"{layer}{entry.link}").st_ino
            groups.setdefault(inodes[entry.link], []).append(entry.path)
    return groups


def _sha256(path: Path) -> str:
    with open(path, "rb", buffering=0) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
