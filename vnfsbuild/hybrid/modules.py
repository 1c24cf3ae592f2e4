"""Which kernel modules an initrd carries: those asked for, what they depend on, and the firmware they name.

Reads what depmod(8) left in the root; runs nothing of the root. Paths are followed inside the root only: a link that
points out of it leads nowhere.
"""

from __future__ import annotations

import gzip
import io
import lzma
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import zstandard

from vnfsbuild.errors import HostError, NotFound, VnfsError, did_you_mean
from vnfsbuild.host.fs import resolve_in

_MAX_FILE = 256 << 20
# Module metadata is `key=value`, each ended by NUL (include/linux/moduleinfo.h).
_FIRMWARE = re.compile(rb"\0firmware=([\x21-\x7e]{1,255})(?=\0)")
_SUFFIXES = ("", ".zst", ".xz", ".gz")


def inside(root: Path, path: str) -> Path | None:
    """Where `path` of the root really lies, links followed as a process inside the root would; None if nowhere."""
    try:
        place = resolve_in(root, path)
    except HostError:
        return None
    return place if os.path.lexists(place) else None


def read_inside(root: Path, path: str) -> bytes | None:
    """The content of a regular file of the root, or None. Raises VnfsError when it is absurdly large."""
    place = inside(root, path)
    if place is None or not place.is_file():
        return None
    if place.stat().st_size > _MAX_FILE:
        raise VnfsError(f"{place} is too large for an initrd")
    return place.read_bytes()


def expanded(name: str, data: bytes) -> bytes:
    """Content of a file whose name may end in .zst, .xz or .gz. Raises VnfsError when it is damaged or absurd."""
    source: IO[bytes] | lzma.LZMAFile | gzip.GzipFile | zstandard.ZstdDecompressionReader
    try:
        if name.endswith(".zst"):
            source = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True)
        elif name.endswith(".xz"):
            source = lzma.LZMAFile(io.BytesIO(data))  # noqa: SIM115
        elif name.endswith(".gz"):
            source = gzip.GzipFile(fileobj=io.BytesIO(data))
        else:
            return data
        with source:
            plain = source.read(_MAX_FILE + 1)
    except (zstandard.ZstdError, lzma.LZMAError, OSError, EOFError) as error:
        raise VnfsError(f"{name} cannot be decompressed: {error}") from error
    if len(plain) > _MAX_FILE:
        raise VnfsError(f"{name} is too large for an initrd")
    return plain


def module_name(path: str) -> str:
    """The name of the module in a file: mlx5-core.ko.xz is mlx5_core."""
    return path.rsplit("/", 1)[-1].split(".ko", 1)[0].replace("-", "_")


@dataclass(slots=True)
class ModuleTree:
    """What depmod knows about the modules of one kernel: `needs` by file, in the order depmod gives (the nearest
    first), `soft` the modules that should be loaded before another, `aliases` as (pattern, module)."""

    needs: dict[str, tuple[str, ...]]
    names: dict[str, str]
    builtin: frozenset[str]
    aliases: tuple[tuple[str, str], ...]
    soft: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def load(cls, root: Path, release: str) -> ModuleTree:
        """Read the tables of a kernel. Raises NotFound when the root has none."""
        text = {
            name: (read_inside(root, f"lib/modules/{release}/modules.{name}") or b"").decode(errors="replace")
            for name in ("dep", "builtin", "alias", "softdep")
        }
        if not text["dep"]:
            raise NotFound(
                f"{root} has no modules.dep for the kernel {release}", f"run depmod {release} inside the root"
            )
        needs = {}
        for line in text["dep"].splitlines():
            path, _, rest = line.partition(":")
            needs[path] = tuple(rest.split())
        tree = cls(
            needs=needs,
            names={module_name(path): path for path in needs},
            builtin=frozenset(module_name(path) for path in text["builtin"].split()),
            aliases=tuple(_aliases(text["alias"])),
        )
        for line in text["softdep"].splitlines():
            words = line.split()
            if len(words) > 2 and words[0] == "softdep":
                before = tuple(_before(words[2:]))
                tree.soft[words[1].replace("-", "_")] = (*tree.soft.get(words[1].replace("-", "_"), ()), *before)
        return tree

    def has(self, name: str) -> bool:
        """Whether the kernel can do what the module `name` does, built in or loadable."""
        return name.replace("-", "_") in self.names or name.replace("-", "_") in self.builtin

    def closure(self, wanted: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """Files of the modules named and of all they need, each with what it needs in the order of loading."""
        chosen: dict[str, tuple[str, ...]] = {}
        plain = {pattern: name for pattern, name in self.aliases if not any(mark in pattern for mark in "*?[")}

        def visit(path: str, trail: frozenset[str]) -> tuple[str, ...]:
            if path in chosen:
                return chosen[path]
            order: dict[str, None] = {}
            soft = (self._find(name, plain) for name in self.soft.get(module_name(path), ()))
            for need in (*(found for found in soft if found), *reversed(self.needs.get(path, ()))):
                # A soft dependency may point back at us; a hard one cannot.
                if need not in trail and need != path and need in self.needs:
                    order |= dict.fromkeys((*visit(need, trail | {path}), need))
            order.pop(path, None)
            if not trail:
                chosen[path] = tuple(order)
            return tuple(order)

        pending = [path for name in wanted if (path := self._find(name, plain))]
        while pending:
            path = pending.pop()
            if path not in chosen:
                pending += visit(path, frozenset())
        return chosen

    def _find(self, name: str, plain: dict[str, str]) -> str | None:
        return self.names.get(name.replace("-", "_")) or self.names.get(plain.get(name, "").replace("-", "_"))

    def nearest(self, name: str) -> str:
        """A hint for a module that does not exist."""
        return did_you_mean(name.replace("-", "_"), self.names, "see lib/modules in the root")


def _aliases(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and words[0] == "alias":
            yield words[1], words[2]


def _before(words: list[str]) -> Iterator[str]:
    kind = "pre:"
    for word in words:
        if word in {"pre:", "post:"}:
            kind = word
        elif kind == "pre:":
            yield word


def firmware_of(root: Path, module: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and content of the firmware that a module's metadata names, as far as the root has it."""
    for name in dict.fromkeys(found.group(1).decode() for found in _FIRMWARE.finditer(module)):
        if any(part in {"", ".", ".."} for part in name.split("/")):
            continue
        for suffix in _SUFFIXES:
            data = read_inside(root, f"lib/firmware/{name}{suffix}")
            if data is not None:
                yield name, expanded(name + suffix, data)
                break
