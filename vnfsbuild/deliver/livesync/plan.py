"""What livesync would do to a node: a comparison of three trees, without any input or output.

`current` is the version that the node says it runs, `target` the one it shall run, `live` what is really there.
Where live equals target there is nothing to do; where it equals current it is changed; all else is drift, which the
policy decides. Content, type, mode, owner, link target, device and extended attributes count. Times do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from vnfsbuild.deliver.livesync.skip import ancestors
from vnfsbuild.store.toc import Entry, FileType, sort_key

Tree = Mapping[str, Entry]
_UNSEEN = ("user.", "system.")
_LABEL = "security.selinux"


class Policy(StrEnum):
    """What happens to drift: it stays, it is overwritten (a copy is kept), or nothing at all is applied."""

    KEEP = "keep"
    OVERWRITE = "overwrite"
    FAIL = "fail"


class Kind(StrEnum):
    ADD = "add"
    CHANGE = "change"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Change:
    """One path to be brought from `live` to `target`; None means not there. `differs` names what is different.
    `drifted` says that what is lost is the node's own, and is copied away first."""

    path: str
    live: Entry | None
    target: Entry | None
    differs: tuple[str, ...]
    drifted: bool = False

    @property
    def kind(self) -> Kind:
        if self.target is None:
            return Kind.DELETE
        return Kind.ADD if self.live is None else Kind.CHANGE


@dataclass(frozen=True, slots=True)
class Drift:
    """One path that is neither what the node should have nor what it shall get. `differs` is against the target;
    `because` says what stands in the way where the path itself would not have been drift."""

    path: str
    differs: tuple[str, ...]
    because: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """Changes and drift, sorted by path. `skipped` are paths that differ between the versions and are the node's."""

    changes: tuple[Change, ...] = ()
    drift: tuple[Drift, ...] = ()
    skipped: tuple[str, ...] = ()


def xattrs(entry: Entry) -> dict[str, bytes]:
    """The extended attributes that count. user.* cannot be stored on a node whose tmpfs lacks it, system.* is not in
    a layer, and SELinux labels are made by the node's own policy."""
    return {name: value for name, value in entry.xattrs if not name.startswith(_UNSEEN) and name != _LABEL}


def differences(left: Entry | None, right: Entry | None) -> tuple[str, ...]:
    """In what two states of a path differ, times and hard links aside; empty when they are the same."""
    if left is None or right is None:
        return () if left is right else (("missing",) if left is None else ("added",))
    if left.type is not right.type:
        return ("type",)
    found = []
    if left.type is FileType.FILE and (left.size, left.sha256) != (right.size, right.sha256):
        found.append("content")
    if left.type is FileType.SYMLINK and left.target != right.target:
        found.append("target")
    if left.type in {FileType.CHAR, FileType.BLOCK} and left.device != right.device:
        found.append("device")
    if left.type is not FileType.SYMLINK and left.mode != right.mode:
        found.append("mode")
    if (left.uid, left.gid) != (right.uid, right.gid):
        found.append("owner")
    if xattrs(left) != xattrs(right):
        found.append("xattrs")
    return tuple(found)


def same(left: Entry | None, right: Entry | None) -> bool:
    """Whether a node could not tell the two apart, times and hard links aside."""
    return not differences(left, right)


def changed_paths(old: Tree, new: Tree) -> set[str]:
    """Paths that differ between two versions."""
    return {path for path in old.keys() | new.keys() if not same(old.get(path), new.get(path))}


def candidates(
    changed: Iterable[str], versions: Iterable[Tree], upper: Mapping[str, bool], names: Mapping[str, frozenset[str]]
) -> set[str]:
    """The paths at which a node may differ from what it shall be: those that the versions differ in, what its upper
    directory holds, and what the versions have below directories that are no more.

    `upper` says of each path in the upper directory whether it is a directory there; `names` holds the names that are
    really in such a directory, so that one made anew does not hide what it should have had. In each of the `versions`
    a directory comes before what is in it, as in a table of contents.
    """
    found = set(changed) | set(upper)
    gone = {path for path, is_directory in upper.items() if not is_directory}
    for tree in versions:
        for path in tree:
            parent, _, name = path.rpartition("/")
            listed = names.get(parent or "/")
            if parent in gone or (listed is not None and name not in listed and path != "/"):
                gone.add(path)
    return found | gone


def make_plan(
    current: Tree,
    target: Tree,
    live: Tree,
    among: Iterable[str],
    *,
    protected: Callable[[str], bool],
    guests: Iterable[str] = (),
    policy: Policy = Policy.KEEP,
    halfway: Tree | None = None,
    pending: frozenset[str] = frozenset(),
) -> Plan:
    """Compare the trees at the paths `among`; everywhere else the node is known to equal both versions.

    `live` holds those of the paths that exist. `guests` are protected paths that exist on the node: the directories
    that lead to them stay. `halfway` and `pending` come from the journal of a livesync that was cut off: the
    version it was going to, and the paths it was at; what it left there is ours, not drift.
    """
    planner = _Planner(current, target, live, policy=policy, halfway=halfway or {}, pending=pending)
    wanted = sorted({path for path in among if not protected(path)}, key=sort_key)
    planner.compare(wanted)
    planner.keep_directories(guests)
    planner.refuse_below_strangers()
    planner.join_hard_links(protected)
    skipped = sorted(
        {path for path in among if protected(path) and not same(current.get(path), target.get(path))}, key=sort_key
    )
    changes = tuple(planner.changes[path] for path in sorted(planner.changes, key=sort_key))
    drift = tuple(planner.drift[path] for path in sorted(planner.drift, key=sort_key))
    return Plan(changes, drift, tuple(skipped))


class _Planner:
    def __init__(
        self, current: Tree, target: Tree, live: Tree, *, policy: Policy, halfway: Tree, pending: frozenset[str]
    ) -> None:
        self.current, self.target, self.live = current, target, live
        self.policy, self.halfway, self.pending = policy, halfway, pending
        self.changes: dict[str, Change] = {}
        self.drift: dict[str, Drift] = {}
        self.seen: set[str] = set()

    def compare(self, paths: Iterable[str]) -> None:
        for path in paths:
            self.seen.add(path)
            live, target = self.live.get(path), self.target.get(path)
            differs = differences(live, target)
            if not differs:
                continue
            ours = self._is_ours(path, live)
            if ours or self.policy is Policy.OVERWRITE:
                self.changes[path] = Change(path, live, target, differs, drifted=not ours)
            else:
                self.drift[path] = Drift(path, differs)

    def _is_ours(self, path: str, live: Entry | None) -> bool:
        if same(live, self.current.get(path)):
            return True
        if path not in self.pending:
            return False
        return live is None or live.type is FileType.DIRECTORY or same(live, self.halfway.get(path))

    def keep_directories(self, guests: Iterable[str]) -> None:
        """A directory that should go stays while something in it does."""
        needed = {above for guest in guests for above in ancestors(guest)}
        for path in needed & (self.changes.keys() | self.drift.keys()):
            if self._should_go(path):
                self._give_up(path, "what is the node's own lies in it")
        edited = {above for path in self.drift if path in self.live for above in ancestors(path)}
        for path in edited & self.changes.keys():
            if self._should_go(path):
                self._give_up(path, "what was changed on the node lies in it")

    def _should_go(self, path: str) -> bool:
        return _is_directory(self.live.get(path)) and not _is_directory(self.target.get(path))

    def _give_up(self, path: str, because: str) -> None:
        change = self.changes.pop(path, None)
        old = self.drift.pop(path, None)
        differs = change.differs if change else old.differs if old else ()
        if path in self.target:
            self.drift[path] = Drift(path, differs, because)

    def refuse_below_strangers(self) -> None:
        """What should appear below something that will not be a directory cannot."""
        for path in sorted(self.changes, key=sort_key):
            if path == "/" or self.changes[path].target is None:
                continue
            parent = path.rpartition("/")[0] or "/"
            if not self._becomes_directory(parent):
                self._give_up(path, f"{parent} is no directory on the node")

    def _becomes_directory(self, path: str) -> bool:
        if path in self.changes:
            return _is_directory(self.changes[path].target)
        source = self.live if path in self.seen or path in self.live else self.target
        return _is_directory(source.get(path))

    def join_hard_links(self, protected: Callable[[str], bool]) -> None:
        """A file with several names is replaced under all of them, so that they stay one file."""
        groups = {change.target.link for change in self.changes.values() if change.target and change.target.link}
        if not groups:
            return
        for path, entry in self.target.items():
            if entry.link in groups and path not in self.changes and path not in self.drift and not protected(path):
                live = self.live.get(path) if path in self.seen else entry
                parent = path.rpartition("/")[0] or "/"
                if self._becomes_directory(parent):
                    self.changes[path] = Change(path, live, entry, ("link",))


def _is_directory(entry: Entry | None) -> bool:
    return entry is not None and entry.type is FileType.DIRECTORY


def operations(plan: Plan) -> Iterator[tuple[str, str]]:
    """The steps of a plan in the order in which a node takes them, as (letter, path).

    b copy away; x remove what is in the way of a directory, or below a directory that becomes something else; y remove
    such a directory; d make a directory or set its attributes; f move the staged file in; u delete; r remove a
    directory, if it is empty.
    """
    rising = plan.changes
    falling = rising[::-1]
    flips = {c.path for c in rising if c.live and c.target and _is_directory(c.live) and not _is_directory(c.target)}
    early = {c.path for c in rising if c.target is None and any(above in flips for above in ancestors(c.path))}
    for change in rising:
        if change.drifted and change.live:
            yield "b", change.path
    for change in falling:
        path, is_dir = change.path, _is_directory(change.live)
        if change.live and (path in early or path in flips):
            yield ("y" if is_dir else "x"), path
        elif change.live and not is_dir and _is_directory(change.target):
            yield "x", path
    yield from (("d", c.path) for c in rising if _is_directory(c.target))
    yield from (("f", c.path) for c in rising if c.target and not _is_directory(c.target))
    gone = [c for c in falling if c.live and c.target is None and c.path not in early]
    yield from (("u", c.path) for c in gone if not _is_directory(c.live))
    yield from (("r", c.path) for c in gone if _is_directory(c.live))


def staged(plan: Plan) -> tuple[Entry, ...]:
    """What must lie on the node before the plan can be applied, parents first."""
    return tuple(change.target for change in plan.changes if change.target)


def without_links(entry: Entry) -> Entry:
    """The entry as `live` knows it: no time, no hard-link group."""
    return replace(entry, mtime=0, link="")
