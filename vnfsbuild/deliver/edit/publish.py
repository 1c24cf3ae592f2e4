"""Turns the edits of an open capsule into its next version: a layer that holds only what changed.

Until the store has the new version the edits stay where they are, so a full disk, a crash or kill -9 loses nothing and
`vnfs umount` can be run again; run again after a crash that came later, it finds the version that was published.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from vnfsbuild.deliver.edit import mounts
from vnfsbuild.deliver.edit.delta import is_whiteout, members, merged
from vnfsbuild.deliver.edit.upper import Edits, lower_groups, read
from vnfsbuild.errors import TrustError
from vnfsbuild.family.deb import inventory, scrub, shell
from vnfsbuild.format.squashfs import compressor_of, pack_stream
from vnfsbuild.host import mount as host
from vnfsbuild.host.fs import make_directory, walk, work_directory
from vnfsbuild.host.user import require_root
from vnfsbuild.model import Blob
from vnfsbuild.progress import Monitor
from vnfsbuild.store import sbom
from vnfsbuild.store.capsules import Store
from vnfsbuild.store.cas import digest_of
from vnfsbuild.store.manifest import Capsule, Config
from vnfsbuild.store.toc import Entry, FileType, Toc, losses, read_entry

_KERNEL_PATHS = ("/boot/vmlinuz-", "/lib/modules/", "/usr/lib/modules/")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What umount did. `capsule` is the new version, or None when nothing had changed; `changed` and `removed` count
    paths, `layer` is the new layer; `dropped` are edited paths that must not be published; `warnings` is for people."""

    base: str
    capsule: Capsule | None
    changed: int = 0
    removed: int = 0
    layer: Blob | None = None
    dropped: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def umount(store: Store, work: Path, name: str, message: str, monitor: Monitor) -> Outcome:
    """Unmount a capsule and publish what changed as its next version; when nothing changed, there is none.

    Raises Conflict when it is not mounted, Busy naming the process that is still inside. After any error the edits
    are kept, and umount or mount go on with them.
    """
    require_root("publishing edits")
    place = mounts.Place(work, name)
    with place.lock():
        state = place.need()
        with mounts.detached(store, place, state) as base:
            try:
                shell.sweep(place.upper)
                outcome = _publish(store, place, base, message, monitor)
            except BaseException:
                monitor.note(f"the edits are kept: vnfs umount {name} again, or vnfs mount {name} to go on with them")
                raise
            mounts.forget(place, state)
    return outcome


def _publish(store: Store, place: mounts.Place, base: Capsule, message: str, monitor: Monitor) -> Outcome:
    parent = store.toc(base)
    volatile = scrub.VOLATILE if base.config.family == "deb" else ()
    edits = read(place.upper, place.work, below=parent, volatile=volatile)
    groups = lower_groups(place.layers / "0", parent) if edits.upper.indexed else {}
    new = merged(parent, edits.upper, groups)
    changes = members(parent, new)
    if not _worth_publishing(changes, parent):
        return Outcome(base.reference, None, dropped=edits.dropped)
    text = new.canonical()
    tree = digest_of(text)
    known = _published(store, base, place.name, tree)
    warnings = (*edits.warnings, *_warnings(store, base, place.name, parent, new))
    if known is None:
        with monitor.step("pack the edits"):
            layer = _pack(store, place.layers / "new", base, changes, edits)
            bill = _sbom(store, place, base, parent, new)
            config = _config(base, place.name, tree, message)
            known = _enter(store, base, config, toc=Toc.pack(text), layer=layer, bill=bill)
    hidden = sum(1 for entry in changes if is_whiteout(entry))
    return Outcome(base.reference, known, len(changes) - hidden, hidden, known.layers[-1], edits.dropped, warnings)


def _worth_publishing(changes: tuple[Entry, ...], parent: Toc) -> bool:
    """Whether anything but the times of directories changed."""
    below = parent.by_path()
    for entry in changes:
        old = below.get(entry.path)
        if entry.type is not FileType.DIRECTORY or old is None or replace(entry, mtime=old.mtime) != old:
            return True
    return False


def _published(store: Store, base: Capsule, name: str, tree: str) -> Capsule | None:
    """The version that an earlier umount of these edits published before it was ended."""
    later = [version for version in store.versions(name) if name != base.config.name or version > base.config.version]
    for version in reversed(later):
        capsule = store.get(f"{name}:{version}")
        if capsule.config.parent == base.digest and capsule.config.tree == tree:
            return capsule
    return None


def _warnings(store: Store, base: Capsule, name: str, parent: Toc, new: Toc) -> list[str]:
    found = []
    newest = store.versions(name)[-1:]
    if newest and newest[0] != base.config.version:
        found.append(
            f"{name}:{newest[0]} was published meanwhile; this version is made from {base.reference} and has none of it"
        )
    # By what is there, not by what was written: a directory above may have been removed or replaced.
    before, after = _kernel(parent), _kernel(new)
    kernel = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    if kernel:
        found.append(
            f"the kernel or its modules changed ({kernel[0]} and {len(kernel) - 1} more), but this version still boots "
            f"the kernel and initrd of {base.reference}: rebuild the recipe (vnfs build) to boot the new one"
        )
    return found


def _kernel(toc: Toc) -> dict[str, Entry]:
    return {
        entry.path: entry
        for entry in toc.entries
        if entry.path.startswith(_KERNEL_PATHS) and entry.type is not FileType.DIRECTORY
    }


def _pack(store: Store, point: Path, base: Capsule, changes: tuple[Entry, ...], edits: Edits) -> Blob:
    by_content = {entry.sha256: edits.sources[entry.path] for entry in edits.upper.entries if entry.sha256}
    by_content |= edits.shared

    def content(entry: Entry) -> IO[bytes]:
        source = edits.sources.get(entry.path)
        return open(source if source else by_content[entry.sha256], "rb")

    ingest = make_directory(store.blobs.ingest)
    with work_directory(ingest, "layer") as scratch:
        image = scratch / "layer.squashfs"
        pack_stream(
            changes, content, image, compressor=compressor_of(store.layer_paths(base)[0]), epoch=int(time.time())
        )
        _check(image, changes, point)
        return store.blobs.adopt(image)


def _check(image: Path, changes: tuple[Entry, ...], point: Path) -> None:
    """Refuse a layer that does not hold what it should: read back, it must be the changes and nothing else."""
    make_directory(point)
    if host.is_mountpoint(point):
        host.unmount(point)
    host.squashfs(image, point)
    try:
        got = Toc.of(read_entry(point, path, info, overlay_xattrs=True) for path, info in walk(point))
    finally:
        host.unmount(point)
    lost = losses(Toc.of(changes), got)
    if lost:
        raise TrustError(
            f"the new layer lost something: {'; '.join(lost[:5])}", "the edits are kept; nothing was published"
        )


def _config(base: Capsule, name: str, tree: str, message: str) -> Config:
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return replace(base.config, name=name, created=created, tree=tree, message=message, parent=base.digest)


def _enter(store: Store, base: Capsule, config: Config, *, toc: bytes, layer: Blob, bill: Blob) -> Capsule:
    return store.publish(
        config,
        layers=(*base.layers, layer),
        kernel=base.kernel,
        initrd=base.initrd,
        toc=store.blobs.put_bytes(toc),
        sbom=bill,
    )


def _sbom(store: Store, place: mounts.Place, base: Capsule, parent: Toc, new: Toc) -> Blob:
    """The list of packages: the base's, unless the package database is another, or gone."""
    before, after = ({entry.path: entry.sha256 for entry in toc.entries}.get(inventory.STATUS) for toc in (parent, new))
    if before == after or base.config.family != "deb":
        return base.sbom
    packages = inventory.inventory(place.upper) if after else ()
    return store.blobs.put_bytes(sbom.to_bytes(packages, family=base.config.family, distro=base.config.distro))
