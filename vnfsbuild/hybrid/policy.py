"""What turns a plain root into one that many nodes can boot: per-node identity out, first-boot units in.

The defaults are files, not code: `capsules/PROFILE/files` is a tree that is laid over the root, `enable` lists units,
`livesync.skip` the paths that belong to the node. Owns no package knowledge: what a distribution must forget is its
family's `scrub`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from vnfsbuild.errors import NotFound
from vnfsbuild.host.fs import resolve_in, walk, xattr_names
from vnfsbuild.host.sandbox import Bind, run_in

_INSIDE = "/run/vnfs/files"
# The directory's own attributes stay the root's; links to directories are followed, inside the root.
_LAY = (
    f"tar -C {_INSIDE} --owner=0 --group=0 --numeric-owner --sort=name -cf - . "
    "| tar -C / --keep-directory-symlink --no-overwrite-dir --numeric-owner -xpf -"
)


@dataclass(frozen=True, slots=True)
class Profile:
    """A capsule profile: the tree laid over a root, the units to enable, and what livesync leaves to the node."""

    name: str
    files: Path
    enable: tuple[str, ...]
    livesync_skip: tuple[str, ...]


def profile(name: str, directory: Path) -> Profile:
    """Read `directory`/`name`. Raises NotFound naming those that exist."""
    place = directory / name
    if not place.is_dir():
        known = ", ".join(sorted(path.name for path in directory.iterdir())) if directory.is_dir() else "none"
        raise NotFound(f"there is no capsule profile {name}", f"profiles: {known}")
    return Profile(name, place / "files", read_list(place / "enable"), read_list(place / "livesync.skip"))


def read_list(path: Path) -> tuple[str, ...]:
    """The entries of a list file: one per line, `#` begins a comment. A missing file is an empty list."""
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return ()
    return tuple(entry for line in lines if (entry := line.partition("#")[0].strip()))


def lay_over(root: Path, tree: Path) -> None:
    """Copy `tree` over the root, as root's, modes kept. Runs inside the root: a link in it cannot lead outside."""
    if tree.is_dir():
        run_in(
            root, ["sh", "-c", _LAY], binds=[Bind(tree, _INSIDE, read_only=True)], what=f"laying {tree} over the root"
        )


def hybridize(root: Path, chosen: Profile) -> None:
    """Make `root` one that boots stateless: the profile's files in, what is one machine's own out."""
    lay_over(root, chosen.files)
    if chosen.enable and (root / "bin/systemctl").exists():
        run_in(root, ["systemctl", "--quiet", "enable", *chosen.enable], what="systemctl enable")
    machine_id = resolve_in(root, "/etc") / "machine-id"
    machine_id.unlink(missing_ok=True)
    machine_id.touch(mode=0o444)


def normalize(root: Path, epoch: int) -> tuple[str, ...]:
    """Make the tree one that a layer can hold and that the same inputs always give; return what had an ACL.

    POSIX ACLs, which squashfs cannot hold, are removed. Modification times become whole seconds, none later than
    `epoch` (seconds since 1970).
    """
    lost = []
    # Collected first: removing an attribute or setting a time must not disturb the walk.
    for path, info in list(walk(root)):
        full = f"{root}{path}"
        acls = [name for name in xattr_names(full) if name.startswith("system.posix_acl_")]
        for name in acls:
            os.removexattr(full, name, follow_symlinks=False)
        if acls:
            lost.append(path)
        when = min(int(info.st_mtime), epoch)
        if info.st_mtime_ns != when * 1_000_000_000 or acls:
            os.utime(full, (when, when), follow_symlinks=False)
    return tuple(lost)
