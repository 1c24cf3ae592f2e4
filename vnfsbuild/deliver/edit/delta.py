"""What an edit changed, computed from tables of contents alone: no file system is read or written here.

Two functions matter. `merged` says what a node sees when an overlay's upper directory lies over a version; `members`
says what a layer must hold so that a node sees one tree where it saw another. The second knows nothing of the first,
so a rebuilt tree is made a delta in the same way as an edited one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from vnfsbuild.store.toc import Entry, FileType, Toc, sort_key

OPAQUE = ("trusted.overlay.opaque", b"y")
_NO_DEVICE = (0, 0)


def whiteout(path: str) -> Entry:
    """The entry that hides `path` of the layers below: a character device 0, 0."""
    return Entry(path, FileType.CHAR, device=_NO_DEVICE)


def is_whiteout(entry: Entry) -> bool:
    return entry.type is FileType.CHAR and entry.device == _NO_DEVICE


@dataclass(frozen=True, slots=True)
class Indexed:
    """A file with several names below that was copied up once for all of them (overlayfs index=on).

    `lower` is its inode number in the layer below, `entry` what it is now; its `link` is that of the upper entries
    which are the same file.
    """

    lower: int
    entry: Entry


@dataclass(frozen=True, slots=True)
class Upper:
    """An overlay's upper directory. `entries` are sorted by path, whiteouts among them, without the xattrs of
    overlayfs; `link` is any word that equal files share. `opaque` names directories that hide what lies below."""

    entries: tuple[Entry, ...]
    opaque: frozenset[str] = frozenset()
    indexed: tuple[Indexed, ...] = field(default=())


def merged(parent: Toc, upper: Upper, groups: Mapping[int, Iterable[str]]) -> Toc:
    """What is seen when `upper` lies over `parent`.

    `groups` maps the inode number of each hard-linked file below to its paths: a name that was not touched itself
    follows what was done to the file under another name.
    """
    below = parent.by_path()
    order = [sort_key(path) for path in below]
    names = list(below)
    view = dict(below)

    def hide(path: str) -> None:
        start, end = bisect_left(order, sort_key(path + "/")), bisect_left(order, sort_key(path + "0"))
        for name in names[start:end]:
            view.pop(name, None)

    for entry in upper.entries:
        hidden = below.get(entry.path)
        replaced = entry.type is not FileType.DIRECTORY or entry.path in upper.opaque
        if hidden is not None and hidden.type is FileType.DIRECTORY and replaced:
            hide(entry.path)
        if is_whiteout(entry):
            view.pop(entry.path, None)
        else:
            view[entry.path] = entry
    for item in upper.indexed:
        for path in groups.get(item.lower, ()):
            if path in view and view[path] is below[path]:
                view[path] = replace(item.entry, path=path)
    return Toc.of(view.values())


def members(parent: Toc, new: Toc) -> tuple[Entry, ...]:
    """The entries of the layer that turns `parent` into `new`, sorted by path; empty when they are equal.

    Directories on the way to a change are there with their attributes, hard-link groups are there whole or not at
    all, removed paths are whiteouts, and a directory of which nothing below remains is opaque instead.
    """
    below, above = parent.by_path(), new.by_path()
    changed = _changed(below, new)
    removed = [path for path in below if path not in above]
    if not changed and not removed:
        return ()
    keeping = _with_ancestors(path for path in above if path not in changed)
    hidden: dict[str, Entry] = {}
    opaque: set[str] = set()
    for path in removed:
        where = parent_of(path)
        directory = above.get(where)
        if directory is None or directory.type is not FileType.DIRECTORY:
            continue  # it went with the directory above it
        if where in keeping or where == "/":
            hidden[path] = whiteout(path)
        else:
            opaque.add(where)
    wanted = _with_ancestors([*changed, *hidden, *opaque]) | changed | opaque
    found = [_marked(above[path], opaque) for path in wanted] + list(hidden.values())
    return tuple(sorted(found, key=lambda entry: sort_key(entry.path)))


def _marked(entry: Entry, opaque: set[str]) -> Entry:
    return replace(entry, xattrs=tuple(sorted((*entry.xattrs, OPAQUE)))) if entry.path in opaque else entry


def _changed(below: Mapping[str, Entry], new: Toc) -> set[str]:
    changed: set[str] = set()
    links: dict[str, list[str]] = defaultdict(list)
    for entry in new.entries:
        old = below.get(entry.path)
        if old is not entry and (old is None or replace(old, link=entry.link) != entry):
            changed.add(entry.path)
        if entry.link:
            links[entry.link].append(entry.path)
    for paths in links.values():
        before = {below[path].link if path in below else "" for path in paths}
        if len(before) > 1 or "" in before or not changed.isdisjoint(paths):
            changed.update(paths)
    return changed | _split(below, new.by_path(), changed, links)


def _split(
    below: Mapping[str, Entry], above: Mapping[str, Entry], changed: set[str], links: Mapping[str, list[str]]
) -> set[str]:
    """Names that must be written although nothing but their being one file with others ended: left in the layer
    below, they would still be."""
    staying: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for path, entry in below.items():
        if entry.link and path in above and path not in changed:
            staying[entry.link][above[path].link or path].append(path)
    found: set[str] = set()
    for parts in staying.values():
        keep = max(parts, key=lambda part: len(parts[part]))
        for part, paths in parts.items():
            if part != keep:
                found.update(links.get(part, paths))
    return found


def parent_of(path: str) -> str:
    return path.rpartition("/")[0] or "/"


def _with_ancestors(paths: Iterable[str]) -> set[str]:
    """The directories above `paths`."""
    found: set[str] = set()
    for path in paths:
        above = path
        while above != "/":
            above = parent_of(above)
            if above in found:
                break
            found.add(above)
    return found
