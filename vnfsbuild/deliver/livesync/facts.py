"""What a node says of itself, read into our words: which version it runs, what was written to it, what lies where.

Every answer is hostile until its form is checked; whatever is malformed raises TrustError naming the node.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vnfsbuild.deliver.livesync.skip import ancestors
from vnfsbuild.deliver.livesync.ssh import Connection, join
from vnfsbuild.errors import TrustError, UsageError
from vnfsbuild.model import check_digest, check_name
from vnfsbuild.store.toc import Entry, FileType, sort_key

_PROVENANCE = 64 << 10
_TYPES: Mapping[str, FileType] = {
    "f": FileType.FILE,
    "d": FileType.DIRECTORY,
    "l": FileType.SYMLINK,
    "c": FileType.CHAR,
    "b": FileType.BLOCK,
    "p": FileType.FIFO,
    "s": FileType.SOCKET,
}
STATE = ("/var/lib/vnfs/livesync", "/.vnfs/livesync")
_XATTR = "SCHILY.xattr."


@dataclass(frozen=True, slots=True)
class Provenance:
    """What a node says it runs. `base` is what it booted, `previous` what it ran before the last livesync; both empty
    when there was none. `record` is the whole object, for what others keep in it."""

    capsule: str
    version: int
    manifest: str
    tree: str
    previous: str
    base: str
    record: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Inspection:
    """`upper` says of each path written since boot whether it is a directory; `journal` is the target and the paths of
    a livesync that was cut off; `free` is in bytes."""

    provenance: Provenance
    release: str
    mounts: tuple[str, ...]
    upper: Mapping[str, bool]
    journal: tuple[str, frozenset[str]] | None
    free: int


def on_node(path: str) -> str:
    """A path as the node-side program takes it."""
    return f".{path}" if path != "/" else "."


def from_node(name: str) -> str:
    """The reverse. Raises ValueError when the name could mean something outside the root."""
    path = name.removeprefix(".")
    if path in {"", "/"}:
        return "/"
    if not path.startswith("/") or any(part in {"", ".", ".."} for part in path[1:].split("/")):
        raise ValueError(f"{name!r} is not a path")
    return path


def provenance(data: bytes, who: str) -> Provenance:
    """Read a node's provenance.json. Raises TrustError when it is not one."""
    try:
        if not data.strip():
            raise ValueError("it is empty or not there: was this node booted from a capsule?")
        if len(data) > _PROVENANCE:
            raise ValueError("it is too large")
        record = json.loads(data)
        version = record["version"]
        if type(version) is not int or version < 1:
            raise ValueError("the version is not a positive number")
        optional = {key: check_digest(record[key]) if record.get(key) else "" for key in ("previous", "base")}
        manifest, tree = check_digest(record["manifest"]), check_digest(record["tree"])
        return Provenance(check_name(record["capsule"]), version, manifest, tree, record=record, **optional)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, UsageError) as error:
        raise TrustError(f"{who}: /run/vnfs/provenance.json does not say what the node runs: {error}") from error


def inspect(connection: Connection) -> Inspection:
    """Ask a node what it runs, what it has mounted and what was written to it since it booted."""
    who = str(connection.node)
    fields = _fields(connection.call("inspect", str(_PROVENANCE + 1)), who)
    try:
        sections = _sections(fields)
        upper = sections.get("upper")
        if upper is None:
            raise ValueError("it has no /run/vnfs/rw/upper; livesync is for stateless nodes")
        blocks, size = sections["free"][0].split(" ")
        return Inspection(
            provenance=provenance(os.fsencode(sections["provenance"][0]), who),
            release=sections["release"][0],
            mounts=tuple(_unescape(line.split(" ")[4]) for line in sections["mounts"]),
            upper={from_node(f"./{item[1:]}"): item[0] == "d" for item in upper},
            journal=_journal(sections.get("journal")),
            free=int(blocks) * int(size),
        )
    except (ValueError, KeyError, IndexError, UsageError) as error:
        raise TrustError(f"{who} gave an answer that cannot be used: {error}") from error


def _sections(fields: list[str]) -> dict[str, list[str]]:
    """Single fields by their names, and lists, which end with an empty field."""
    found: dict[str, list[str]] = {}
    position = iter(fields)
    for name in position:
        if name in {"provenance", "release", "free"}:
            found[name] = [next(position, "")]
        elif name in {"mounts", "upper", "journal"}:
            found[name] = list(iter(lambda: next(position, ""), ""))
        else:
            raise ValueError(f"unknown field {name[:40]!r}")
    return found


def _journal(items: list[str] | None) -> tuple[str, frozenset[str]] | None:
    if not items or not items[0].startswith("t"):
        return None
    return check_digest(items[0][1:]), frozenset(from_node(item[1:]) for item in items[1:])


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _fields(data: bytes, who: str) -> list[str]:
    """NUL-terminated fields, without the last one, which says that the answer is whole."""
    fields = [os.fsdecode(field) for field in data.split(b"\0")]
    if fields[-2:] != ["end", ""]:
        raise TrustError(f"{who}: the answer is cut off", "run it again")
    return fields[:-2]


def names(connection: Connection, directories: Iterable[str]) -> dict[str, frozenset[str]]:
    """The names in each directory of a node; directories that are not there are left out."""
    who = str(connection.node)
    items = join([on_node(path) for path in directories])
    fields = _fields(connection.call("names", items=items), who)
    found: dict[str, set[str]] = {}
    try:
        for directory, name in zip(fields[::2], fields[1::2], strict=True):
            place = found.setdefault(from_node(directory), set())
            if name:
                place.add(name)
    except ValueError as error:
        raise TrustError(f"{who} gave an answer that cannot be used: {error}") from error
    return {path: frozenset(inside) for path, inside in found.items()}


def look(
    connection: Connection,
    paths: Iterable[str],
    *,
    root: str = "/",
    hash_when: Callable[[Entry], bool] = lambda _: True,
) -> dict[str, Entry]:
    """What is at `paths` below `root` on a node, and at the directories that lead there.

    Only files for which `hash_when` holds are read; the others keep an empty sha256. Nothing is looked at through a
    symbolic link: what lies behind one does not exist.
    """
    wanted = set(paths)
    wanted.update(above for path in tuple(wanted) for above in ancestors(path))
    ordered = sorted(wanted, key=sort_key)
    found = _stat(connection, ordered, root)
    real = {path: entry for path, entry in found.items() if _reachable(path, found)}
    _devices(connection, real, root)
    _hash(connection, real, root, hash_when)
    _xattrs(connection, real, root)
    return real


def _reachable(path: str, found: Mapping[str, Entry]) -> bool:
    return all(above in found and found[above].type is FileType.DIRECTORY for above in ancestors(path))


def _stat(connection: Connection, paths: Iterable[str], root: str) -> dict[str, Entry]:
    who = str(connection.node)
    fields = _fields(connection.call("stat", root, items=join([on_node(path) for path in paths])), who)
    try:
        records = [fields[start : start + 7] for start in range(0, len(fields), 7)]
        entries = map(_entry, records)
        return {entry.path: entry for entry in entries}
    except (ValueError, KeyError, TypeError) as error:
        raise TrustError(f"{who} gave an answer that cannot be used: {error}") from error


def _entry(fields: Sequence[str]) -> Entry:
    name, kind, mode, uid, gid, size, target = fields
    path, type_ = from_node(name), _TYPES[kind]
    length = int(size) if type_ is FileType.FILE else 0
    return Entry(path, type_, int(mode, 8), int(uid), int(gid), size=length, target=target)


def _devices(connection: Connection, found: dict[str, Entry], root: str) -> None:
    nodes = [path for path, entry in found.items() if entry.type in {FileType.CHAR, FileType.BLOCK}]
    if not nodes:
        return
    who = str(connection.node)
    for field in _fields(connection.call("devices", root, items=join([on_node(path) for path in nodes])), who):
        match = re.fullmatch(r"([0-9a-f]{1,8}):([0-9a-f]{1,8}) (\..*)", field, re.DOTALL)
        if not match or match[3].removeprefix(".") not in found:
            raise TrustError(f"{who} gave an answer that cannot be used: {field[:80]!r}")
        path = match[3].removeprefix(".")
        found[path] = replace(found[path], device=(int(match[1], 16), int(match[2], 16)))


def _hash(connection: Connection, found: dict[str, Entry], root: str, hash_when: Callable[[Entry], bool]) -> None:
    files = [path for path, entry in found.items() if entry.type is FileType.FILE and hash_when(entry)]
    if not files:
        return
    who = str(connection.node)
    for field in _fields(connection.call("sums", root, items=join([on_node(path) for path in files])), who):
        match = re.fullmatch(r"([0-9a-f]{64}) [ *]\.(/.*)", field, re.DOTALL)
        if not match or match[2] not in found:
            raise TrustError(f"{who} gave an answer that cannot be used: {field[:80]!r}")
        found[match[2]] = replace(found[match[2]], sha256=match[1])


def _xattrs(connection: Connection, found: dict[str, Entry], root: str) -> None:
    letters = {FileType.FILE: "f", FileType.DIRECTORY: "d", FileType.SYMLINK: "d"}
    items = [letters[entry.type] + on_node(path) for path, entry in found.items() if entry.type in letters]
    if not items:
        return
    data = connection.call("xattrs", root, items=join(items))
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:", encoding="utf-8", errors="surrogateescape") as archive:
            for member in archive:
                _take_xattrs(found, member)
    except (tarfile.TarError, ValueError, KeyError, OverflowError, RecursionError, EOFError) as error:
        raise TrustError(f"{connection.node} gave attributes that cannot be read: {error}") from error


def _take_xattrs(found: dict[str, Entry], member: tarfile.TarInfo) -> None:
    pairs = [
        (key.removeprefix(_XATTR), value.encode("utf-8", "surrogateescape"))
        for key, value in member.pax_headers.items()
        if key.startswith(_XATTR)
    ]
    path = from_node(member.name if member.name.startswith(".") else f"./{member.name}")
    if pairs and path in found:
        found[path] = replace(found[path], xattrs=tuple(sorted(pairs)))
