"""What changed from one version to another, in the words of an administrator. Needs no root and mounts nothing.

Files of packages that were added, removed or changed are explained by that and only counted, as are the files in which
the package tools keep their books and directories of which only the time changed. Everything else is named.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vnfsbuild.family.deb import inventory
from vnfsbuild.format.squashfs import read_files
from vnfsbuild.model import Package
from vnfsbuild.store import sbom
from vnfsbuild.store.capsules import Store
from vnfsbuild.store.cas import digest_of
from vnfsbuild.store.manifest import Capsule
from vnfsbuild.store.toc import Entry, FileType, Toc

_UNITS = ("/etc/systemd/system/", "/usr/lib/systemd/system/", "/lib/systemd/system/")
_MODULES = ("/lib/modules/", "/usr/lib/modules/")
_ACCOUNTS = ("/etc/passwd", "/etc/group")
_CAPABILITY = "security.capability"
# In the order of the kernel's numbers (capability.h).
_CAPABILITIES = (
    "chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable net_bind_service "
    "net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot sys_ptrace sys_pacct sys_admin "
    "sys_boot sys_nice sys_resource sys_time sys_tty_config mknod lease audit_write audit_control setfcap mac_override "
    "mac_admin syslog wake_alarm block_suspend audit_read perfmon bpf checkpoint_restore"
)


@dataclass(frozen=True, slots=True)
class PackageChange:
    """`before` or `after` is empty where the package was not there; else versions."""

    name: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class PathChange:
    """One path: `what` is added, deleted, or what about it changed (content, mode, owner, …); `detail` says from what
    to what, where that is short; `explained` names why it is only counted (package, books, time), or is empty."""

    path: str
    what: tuple[str, ...]
    group: str
    detail: str = ""
    explained: str = ""


@dataclass(frozen=True, slots=True)
class Difference:
    """Everything that differs from `old` to `new`. `privileges` are set-id and capability changes, whoever made them;
    `accounts` reads "user added: slurm"; `size` is the growth in bytes of content, `stored` of layers."""

    old: str
    new: str
    packages: tuple[PackageChange, ...]
    paths: tuple[PathChange, ...]
    privileges: tuple[PathChange, ...]
    accounts: tuple[str, ...]
    size: int
    stored: int

    @property
    def empty(self) -> bool:
        return not self.packages and not self.paths

    @property
    def unexplained(self) -> tuple[PathChange, ...]:
        return tuple(change for change in self.paths if not change.explained)

    def to_json(self, *, everything: bool = False) -> dict[str, Any]:
        """The same for a machine; paths that are explained are counted unless `everything`."""
        counts: dict[str, int] = {}
        for change in self.paths:
            if change.explained:
                counts[change.explained] = counts.get(change.explained, 0) + 1
        return {
            "old": self.old,
            "new": self.new,
            "packages": [
                {"name": item.name, "from": item.before or None, "to": item.after or None} for item in self.packages
            ],
            "files": [_record(change) for change in (self.paths if everything else self.unexplained)],
            "privileges": [_record(change) for change in self.privileges],
            "accounts": list(self.accounts),
            "explained": counts,
            "size": self.size,
            "stored": self.stored,
        }


def _record(change: PathChange) -> dict[str, Any]:
    return {
        "path": change.path,
        "what": list(change.what),
        "group": change.group,
        "detail": change.detail,
        "explained": change.explained,
    }


def diff(store: Store, old: Capsule, new: Capsule, *, scratch: Path) -> Difference:
    """Compare two versions, of one name or of two. `scratch` is a directory for the few files that are read."""
    before, after = store.toc(old), store.toc(new)
    packages = compare_packages(*(sbom.packages(store.blobs.read(capsule.sbom)) for capsule in (old, new)))
    names = frozenset(change.name.partition(":")[0] for change in packages)
    owned = _owned(store, old, before, names=names, scratch=scratch)
    owned |= _owned(store, new, after, names=names, scratch=scratch)
    paths = compare(before, after, owned)
    return Difference(
        old=old.reference,
        new=new.reference,
        packages=packages,
        paths=paths,
        privileges=_privileges(before, after),
        accounts=_accounts(store, (old, before), (new, after), scratch),
        size=after.size - before.size,
        stored=sum(blob.size for blob in new.layers) - sum(blob.size for blob in old.layers),
    )


def compare_packages(before: Iterable[Package], after: Iterable[Package]) -> tuple[PackageChange, ...]:
    """Packages that were added, removed or changed, by name (with the architecture where one name has several)."""
    old, new = _by_name(before), _by_name(after)
    return tuple(
        PackageChange(name, old.get(name, ""), new.get(name, ""))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    )


def _by_name(packages: Iterable[Package]) -> dict[str, str]:
    found: dict[str, str] = {}
    for package in packages:
        name = package.name if package.name not in found else f"{package.name}:{package.arch}"
        found[name] = package.version
    return found


def _owned(store: Store, capsule: Capsule, toc: Toc, *, names: frozenset[str], scratch: Path) -> frozenset[str]:
    """The paths that belong to the packages called `names` in a version."""
    bill = sbom.packages(store.blobs.read(capsule.sbom))
    lists = [path for package in bill if package.name in names for path in inventory.file_lists(package)]
    found = contents(store, capsule, toc, lists, scratch)
    return frozenset(_real(path) for listing in found.values() for path in inventory.owned(listing))


def _real(path: str) -> str:
    """Where a merged-/usr root really has a path that dpkg knows by its old name."""
    top = path[1:].partition("/")[0]
    return f"/usr{path}" if top in {"bin", "sbin", "lib", "lib32", "lib64", "libx32"} else path


def contents(store: Store, capsule: Capsule, toc: Toc, paths: Iterable[str], scratch: Path) -> dict[str, bytes]:
    """The contents of those of `paths` that are regular files of the version, read from its layers, topmost first.
    What is read is what the table of contents says, by sha256."""
    entries = toc.by_path()
    wanted = {path: entries[path].sha256 for path in paths if path in entries and entries[path].sha256}
    found: dict[str, bytes] = {}
    for image in reversed(store.layer_paths(capsule)):
        if not wanted:
            break
        for path, data in read_files(image, tuple(wanted), scratch=scratch).items():
            if digest_of(data) == f"sha256:{wanted[path]}":
                found[path] = data
                del wanted[path]
    return found


def compare(before: Toc, after: Toc, owned: frozenset[str] = frozenset()) -> tuple[PathChange, ...]:
    """Every path that differs, sorted by path."""
    old, new = before.by_path(), after.by_path()
    changes = []
    for path in old.keys() | new.keys():
        one, other = old.get(path), new.get(path)
        if one is not other and one != other:
            what, detail = _what(one, other)
            if what:
                why = _explained(path, one, other, what, owned)
                changes.append(PathChange(path, what, _group(path), detail, why))
    return tuple(sorted(changes, key=lambda change: change.path))


def _what(one: Entry | None, other: Entry | None) -> tuple[tuple[str, ...], str]:
    if one is None or other is None:
        kind = (one or other or Entry("/", FileType.FILE)).type
        return ("added",) if one is None else ("deleted",), "" if kind is FileType.FILE else kind.value
    if one.type is not other.type:
        return ("type",), f"{one.type.value} -> {other.type.value}"
    tests: Mapping[str, tuple[object, object]] = {
        "content": ((one.sha256, one.target, one.device), (other.sha256, other.target, other.device)),
        "mode": (one.mode, other.mode),
        "owner": ((one.uid, one.gid), (other.uid, other.gid)),
        "capability": (_capability(one), _capability(other)),
        "xattr": (_attributes(one), _attributes(other)),
        "time": (one.mtime, other.mtime),
    }
    what = tuple(name for name, (left, right) in tests.items() if left != right)
    if len(what) > 1:
        what = tuple(name for name in what if name != "time")
    detail = ""
    if "mode" in what:
        detail = f"{one.mode:04o} -> {other.mode:04o}"
    elif "owner" in what:
        detail = f"{one.uid}:{one.gid} -> {other.uid}:{other.gid}"
    elif one.target != other.target:
        detail = f"{one.target} -> {other.target}"
    return what, detail


def _capability(entry: Entry) -> bytes:
    return dict(entry.xattrs).get(_CAPABILITY, b"")


def _attributes(entry: Entry) -> tuple[tuple[str, bytes], ...]:
    return tuple(item for item in entry.xattrs if item[0] != _CAPABILITY)


def _explained(path: str, one: Entry | None, other: Entry | None, what: tuple[str, ...], owned: frozenset[str]) -> str:
    directory = (other or one or Entry(path, FileType.FILE)).type is FileType.DIRECTORY
    if directory and what == ("time",):
        return "time"
    if path in owned:
        return "package"
    return "books" if inventory.bookkeeping(path) else ""


def _group(path: str) -> str:
    if path.startswith(_UNITS):
        return "units"
    if path.startswith(_MODULES):
        return "modules"
    return "configuration" if path.startswith("/etc/") else "files"


def _privileges(before: Toc, after: Toc) -> tuple[PathChange, ...]:
    """Files that gained, lost or changed set-user-id, set-group-id or capabilities."""
    old, new = before.by_path(), after.by_path()
    found = []
    for path in old.keys() | new.keys():
        one, other = _privilege(old.get(path)), _privilege(new.get(path))
        if one != other:
            what = "added" if not one else "deleted" if not other else "changed"
            found.append(PathChange(path, (what,), "privileges", f"{one or 'none'} -> {other or 'none'}"))
    return tuple(sorted(found, key=lambda change: change.path))


def _privilege(entry: Entry | None) -> str:
    if entry is None or entry.type is not FileType.FILE:
        return ""
    words = [word for bit, word in ((0o4000, "setuid"), (0o2000, "setgid")) if entry.mode & bit]
    if words:
        words[-1] += f" {entry.uid}:{entry.gid}"
    capability = _capability(entry)
    return " ".join(words + ([f"capabilities {capability_words(capability)}"] if capability else []))


def capability_words(value: bytes) -> str:
    """What `getcap` would print: cap_net_raw=ep. The kernel's struct vfs_cap_data: a word of flags, then permitted and
    inheritable bits, 32 at a time."""
    if len(value) < 20:
        return value.hex()
    flags, low, low_inherited, high, high_inherited = struct.unpack_from("<5I", value)
    permitted, inherited = low | high << 32, low_inherited | high_inherited << 32
    known = _CAPABILITIES.split()
    groups: dict[str, list[str]] = {}
    for number in range(64):
        bit = 1 << number
        if (permitted | inherited) & bit:
            name = f"cap_{known[number] if number < len(known) else number}"
            mark = ("e" if flags & 1 else "") + ("i" if inherited & bit else "") + ("p" if permitted & bit else "")
            groups.setdefault(mark, []).append(name)
    return " ".join(f"{','.join(names)}={mark}" for mark, names in groups.items())


def _accounts(store: Store, old: tuple[Capsule, Toc], new: tuple[Capsule, Toc], scratch: Path) -> tuple[str, ...]:
    lines = []
    one, other = old[1].by_path(), new[1].by_path()
    changed = [path for path in _ACCOUNTS if one.get(path) != other.get(path)]
    if not changed:
        return ()
    texts = [contents(store, capsule, toc, changed, scratch) for capsule, toc in (old, new)]
    for path in changed:
        before, after = (_first_fields(text.get(path, b"")) for text in texts)
        kind = "user" if path.endswith("passwd") else "group"
        lines += [f"{kind} removed: {name}" for name in sorted(before.keys() - after.keys())]
        lines += [f"{kind} added: {name}" for name in sorted(after.keys() - before.keys())]
        lines += [
            f"{kind} changed: {name}" for name in sorted(before.keys() & after.keys()) if before[name] != after[name]
        ]
    return tuple(lines)


def _first_fields(text: bytes) -> dict[str, str]:
    lines = (line.partition(":") for line in text.decode(errors="replace").splitlines() if ":" in line)
    return {name: rest for name, _, rest in lines}
