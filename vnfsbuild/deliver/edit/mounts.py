"""Capsules opened for editing: a writable view over a published version, and what becomes of the edits.

Owns `WORK/mounts/NAME/`: state.json (what is mounted where), upper (the edits), work (overlayfs' own), layers/N (where
the layers are mounted). The published version below is never written to. The edits are in `upper` from the first write
on: a crash, a reboot or a failed umount loses none, `vnfs mount` or `vnfs umount` goes on from them. A directory leaves
`mounts/` by one rename, after everything that was in it is published or thrown away.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from vnfsbuild.deliver.edit.busy import users
from vnfsbuild.errors import Busy, Conflict, HostError, NotFound, TrustError
from vnfsbuild.host import mount as host
from vnfsbuild.host.fs import atomic_write, lock, make_directory, remove_tree, walk, xattr_names
from vnfsbuild.host.interrupt import finish, held, resource
from vnfsbuild.host.user import require_root
from vnfsbuild.model import Reference
from vnfsbuild.store.capsules import Store
from vnfsbuild.store.manifest import Capsule

DEFAULT_PARENT = Path("/mnt")


@dataclass(frozen=True, slots=True)
class State:
    """What is open: `reference` and `digest` of the version below, the directory `at`, and whether we made that."""

    name: str
    reference: str
    digest: str
    at: str
    made_at: bool


@dataclass(frozen=True, slots=True)
class Mounted:
    """A successful mount; `resumed` when it shows edits that an earlier mount left behind."""

    state: State
    resumed: bool

    @property
    def at(self) -> Path:
        return Path(self.state.at)


class Place:
    """The directory of one open capsule, by name."""

    def __init__(self, work: Path, name: str) -> None:
        self.name = name
        self.parent = work / "mounts"
        self.root = self.parent / name
        self.upper, self.work, self.layers = self.root / "upper", self.root / "work", self.root / "layers"
        self.state_file = self.root / "state.json"

    def lock(self) -> AbstractContextManager[None]:
        """Keep other vnfs processes off this capsule's edits. Raises Busy at once."""
        return lock(self.parent / f".{self.name}.lock", wait=False, what=f"the mount of {self.name}")

    def read(self) -> State | None:
        """What is open here, or None. Raises TrustError when the record is damaged."""
        try:
            return _recorded(self.state_file)
        except (ValueError, TypeError) as error:
            raise TrustError(
                f"{self.state_file} is damaged: {error}", f"the edits are in {self.upper}; save them, then remove it"
            ) from error

    def need(self) -> State:
        state = self.read()
        if state is None:
            others = ", ".join(path.parent.name for path in sorted(self.parent.glob("[!.]*/state.json")))
            also = f"; mounted: {others}" if others else ""
            raise Conflict(f"{self.name} is not mounted", f"vnfs mount {self.name}{also}")
        return state

    def write(self, state: State) -> None:
        atomic_write(self.state_file, json.dumps(asdict(state)).encode())

    def mounted_at(self) -> Path | None:
        """Where this capsule's view is mounted right now, in our namespace."""
        return next(iter(self.views()), None)

    def views(self) -> tuple[Path, ...]:
        """Every place where the view is mounted: one, unless somebody bound it to another."""
        return tuple(_overlays_of(self.upper))

    def has_edits(self) -> bool:
        return self.upper.is_dir() and next(os.scandir(self.upper), None) is not None


def _recorded(file: Path) -> State | None:
    try:
        return State(**json.loads(file.read_bytes()))
    except FileNotFoundError:
        return None


def _overlays_of(upper: Path) -> Iterator[Path]:
    """The mount points of the overlay that writes to `upper`. The kernel tells its options in mountinfo."""
    wanted = os.fsencode(upper)
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        fields, _, rest = line.partition(b" - ")
        if not rest.startswith(b"overlay "):
            continue
        for option in rest.split(b" ")[-1].split(b","):
            key, _, value = option.partition(b"=")
            if key == b"upperdir" and wanted in (_plain(value), re.sub(rb"\\(.)", rb"\1", _plain(value))):
                yield Path(os.fsdecode(_plain(fields.split(b" ")[4])))


def _plain(value: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), value)


def opened(work: Path) -> dict[str, State | None]:
    """What is open, by capsule name; None where the record is only for root to read, or damaged."""
    found: dict[str, State | None] = {}
    for root in sorted((work / "mounts").glob("[!.]*")):
        try:
            state = Place(work, root.name).read()
        except (PermissionError, TrustError):
            found[root.name] = None
        else:
            if state:
                found[root.name] = state
    return found


def mount(store: Store, work: Path, reference: str, at: Path | None = None) -> Mounted:
    """Open a capsule for editing at `at` (default /mnt/NAME, which is made and later removed when it is not there).

    Edits that an earlier mount left (after a reboot, or a umount that could not publish) are shown again. Raises
    Conflict when it is mounted already, or left edits belong to another version; then nothing changed.
    """
    require_root("mounting a capsule", "vnfs show, history, diff and verify work without")
    ref = Reference.parse(reference)
    place = Place(work, ref.name)
    with place.lock():
        _sweep(place.parent)
        state, where = place.read(), place.mounted_at()
        if state and where:
            raise Conflict(
                f"{state.reference} is mounted at {where} already", f"vnfs umount {ref.name}, or vnfs close {ref.name}"
            )
        if state is None and (where or place.has_edits()):
            raise Conflict(
                f"there are edits of {ref.name} in {place.upper}, and nothing says on what they were made",
                f"save them, then: {f'umount {where}; ' if where else ''}rm -r {place.upper}",
            )
        if state is None:
            capsule = store.get(ref)
            _unmount_layers(place)
            remove_tree(place.root)
        else:
            capsule = _below(store, state)
            if str(ref) != ref.name and store.get(ref).digest != state.digest:
                raise Conflict(
                    f"edits of {state.reference} are still here",
                    f"vnfs umount {ref.name} publishes them, vnfs close {ref.name} throws them away",
                )
        point = at.absolute() if at else Path(state.at) if state else DEFAULT_PARENT / ref.name
        made = not point.exists() or bool(state and state.made_at and point == Path(state.at))
        new = State(ref.name, capsule.reference, capsule.digest, str(point), made)
        _open(store, place, capsule, new, fresh=state is None)
        return Mounted(new, resumed=state is not None and place.has_edits())


def _open(store: Store, place: Place, capsule: Capsule, state: State, *, fresh: bool) -> None:
    point = Path(state.at)
    if point.exists() and (not point.is_dir() or host.is_mountpoint(point)):
        raise Conflict(f"{point} is in use", "choose another directory with --at")
    existed = point.exists()
    if existed and next(os.scandir(point), None) is not None:
        raise Conflict(f"{point} is not empty", "choose another directory with --at")
    if any(point.resolve().is_relative_to(own.resolve()) for own in (store.root, place.parent.parent)):
        raise Conflict(f"{point} is a place of vnfs itself", "choose another directory with --at")
    with held(), ExitStack() as undo:
        if fresh:
            undo.callback(_remove_quietly, place.root)
        make_directory(place.root, 0o700)  # what the edits hold, set-uid programs too, is not for the host's users
        for directory in (place.upper, place.work, place.layers):
            make_directory(directory)
        lower = _mount_layers(store, place, capsule, undo)
        if fresh:
            _like(lower[0], place.upper)
        if place.read() != state:  # an old record is left alone: the disk may be full of edits
            place.write(state)  # first, so that a directory we made is known as ours whenever we are killed
        if not existed:
            make_directory(point)
            undo.callback(point.rmdir)
        host.overlay(point, lower=lower, upper=place.upper, work=place.work)
        undo.pop_all()
        finish()


def _remove_quietly(directory: Path) -> None:
    with suppress(OSError, HostError):
        remove_tree(directory)


def _mount_layers(store: Store, place: Place, capsule: Capsule, undo: ExitStack) -> list[Path]:
    """Mount the layers that are not mounted yet; the topmost comes first."""
    there = set(host.mountpoints())
    points: list[Path] = []
    for number, image in enumerate(store.layer_paths(capsule)):
        point = place.layers / str(number)
        points.insert(0, point)
        if str(point.resolve()) not in there:
            make_directory(point)
            undo.callback(_unmount_layers, place)
            host.squashfs(image, point)
    return points


def _like(source: Path, target: Path) -> None:
    """An overlay's root looks like its upper directory: give that the attributes of the root below."""
    info = source.stat()
    os.chown(target, info.st_uid, info.st_gid)
    target.chmod(stat.S_IMODE(info.st_mode))
    for name in xattr_names(os.fspath(source)):
        if not name.startswith("trusted.overlay."):
            os.setxattr(target, name, os.getxattr(source, name))
    os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))


def _below(store: Store, state: State) -> Capsule:
    capsule = store.find_digest(state.digest)
    if capsule is None:
        raise NotFound(
            f"{state.reference} ({state.digest}), which is mounted, is not in the store any more",
            "pull or import it again; the edits are still there",
        )
    return capsule


def point_of(work: Path, name: str) -> Path:
    """Where the capsule is mounted. Raises Conflict when it is not."""
    place = Place(work, name)
    state, where = place.need(), place.mounted_at()
    if where is None:
        raise Conflict(
            f"{state.reference} was mounted at {state.at}, but is not now; its edits are kept",
            f"vnfs mount {name} shows them again",
        )
    return where


@resource
def detached(store: Store, place: Place, state: State) -> Iterator[Capsule]:
    """The edits with the view unmounted, the layers still mounted. Afterwards the edits are kept, or were removed by
    `forget`; either way nothing stays mounted. Raises Busy, changing nothing, when a process is inside."""
    capsule = _below(store, state)
    where = place.mounted_at()
    if where:
        _leave(place, where)
    with ExitStack() as undo:
        undo.callback(_unmount_layers, place)
        _mount_layers(store, place, capsule, undo=ExitStack())
        yield capsule


def _leave(place: Place, where: Path) -> None:
    others = [str(view) for view in place.views() if view != where]
    if others:
        raise Busy(f"{place.name} is mounted at {where} and at {', '.join(others)}", f"umount {others[-1]}")
    held = users(where)
    if held:
        raise Busy(
            f"{where} is in use:\n" + "\n".join(f"  process {user}" for user in held[:10]),
            "leave it (close the shell or stop the program), then try again",
        )
    try:
        host.unmount(where)
    except Busy:
        inside = [point for point in host.mountpoints() if point.startswith(f"{where}/")]
        if inside:
            raise Busy(f"{inside[-1]} is mounted inside {where}", f"umount {inside[-1]}") from None
        raise


def _unmount_layers(place: Place) -> None:
    there = host.mountpoints()
    for point in place.layers.glob("*") if place.layers.is_dir() else ():
        if str(point.resolve()) in there:
            host.unmount(point)


def forget(place: Place, state: State) -> None:
    """Drop what was open, by one rename, once it is published or thrown away. Its view is unmounted already.

    No signal is heard from here on: the edits go, and the caller has only to say what became of them.
    """
    finish()
    _unmount_layers(place)
    trash = place.parent / f".gone-{os.urandom(6).hex()}"
    place.root.rename(trash)
    _remove_point(state)
    remove_tree(trash)


def _sweep(parent: Path) -> None:
    """Finish the removals that a killed process began."""
    for path in parent.glob(".gone-*"):
        with suppress(HostError, OSError, ValueError, TypeError):
            state = _recorded(path / "state.json")
            if state:
                _remove_point(state)
            remove_tree(path)


def _remove_point(state: State) -> None:
    if state.made_at:
        with suppress(OSError):  # somebody put something there: theirs
            Path(state.at).rmdir()


def close(work: Path, name: str) -> State:
    """Throw the edits away. Raises Conflict when nothing is open, Busy when a process is inside."""
    require_root("closing a capsule")
    place = Place(work, name)
    with place.lock():
        state = place.need()
        where = place.mounted_at()
        if where:
            _leave(place, where)
        forget(place, state)
        return state


def edited_paths(work: Path, name: str) -> int:
    """How many paths the edits hold, directories on the way included. Raises Conflict when it is not mounted."""
    place = Place(work, name)
    place.need()
    return sum(1 for path, _ in walk(place.upper) if path != "/")
