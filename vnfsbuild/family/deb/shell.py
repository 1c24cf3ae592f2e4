"""What apt and dpkg need to work inside a mounted capsule without leaving a trace in it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from vnfsbuild.host.fs import atomic_write, make_directory, resolve_in
from vnfsbuild.host.interrupt import resource
from vnfsbuild.host.sandbox import Bind

_LISTS, _CACHE, _POLICY = "/var/lib/apt/lists", "/var/cache/apt", "/usr/sbin/policy-rc.d"
_FRESH_SECONDS = 24 * 3600
# apt would drop to the user _apt, who may not write the administrator's cache; translations are nothing we show.
# Without the error mode, an update that fetched nothing succeeds.
_CONFIGURATION = (
    b'APT::Sandbox::User "root";\nAPT::Update::Error-Mode "any";\nAcquire::Languages "none";\nDpkg::Use-Pty "0";\n'
)
_NO_DAEMONS = b"#!/bin/sh\n# Laid here by vnfs shell while it runs: nothing is started inside a capsule.\nexit 101\n"
_APT = frozenset({"apt", "apt-get", "aptitude"})


def binds(root: Path, cache: Path) -> tuple[Bind, ...]:
    """Package lists and downloads that live in `cache`, of the host, and are only shown to the root."""
    lists, downloads = cache / "lists", cache / "cache"
    make_directory(lists / "partial")
    make_directory(downloads / "archives/partial")
    atomic_write(downloads / "vnfs.conf", _CONFIGURATION)
    wanted = ((lists, _LISTS), (downloads, _CACHE))
    return tuple(Bind(source, target) for source, target in wanted if resolve_in(root, target).is_dir())


def environment(shown: Sequence[Bind]) -> dict[str, str]:
    """What programs inside must be told, given the binds that were made."""
    return {"APT_CONFIG": f"{_CACHE}/vnfs.conf"} if any(bind.target == _CACHE for bind in shown) else {}


def uses_packages(argv: Sequence[str]) -> bool:
    """Whether the command is one of apt's that needs package lists."""
    return bool(argv) and Path(argv[0]).name in _APT and not {"update", "clean", "--help"} & set(argv)


def stale(cache: Path) -> bool:
    """Whether the package lists are missing, or older than a day."""
    times = [path.stat().st_mtime for path in (cache / "lists").glob("*_*")]
    mark = cache / "updated"
    return not times or not mark.exists() or time.time() - mark.stat().st_mtime > _FRESH_SECONDS


def updated(cache: Path) -> None:
    """Remember that the lists were fetched just now."""
    (cache / "updated").touch()


@resource
def no_daemons(root: Path) -> Iterator[None]:
    """While the context lasts, maintainer scripts inside `root` are told not to start anything."""
    policy = _inside(root, _POLICY)
    if os.path.lexists(policy) or not policy.parent.is_dir():
        yield
        return
    before = (policy.parent.stat(), _names(policy.parent))
    with open(policy, "xb") as out:
        os.fchmod(out.fileno(), 0o755)
        out.write(_NO_DAEMONS)
    try:
        yield
    finally:
        sweep(root)
        if _names(policy.parent) == before[1]:
            os.utime(policy.parent, ns=(before[0].st_atime_ns, before[0].st_mtime_ns))


@resource
def resolver(root: Path) -> Iterator[None]:
    """While the context lasts there is an /etc/resolv.conf, over which the sandbox lays the host's."""
    file = _inside(root, "/etc/resolv.conf")
    if os.path.lexists(file) or not file.parent.is_dir():
        yield
        return
    before = (file.parent.stat(), _names(file.parent))
    file.touch(exist_ok=False)
    try:
        yield
    finally:
        if file.is_file() and not file.is_symlink() and file.stat().st_size == 0:
            file.unlink()
        if _names(file.parent) == before[1]:
            os.utime(file.parent, ns=(before[0].st_atime_ns, before[0].st_mtime_ns))


def sweep(root: Path) -> None:
    """Remove what a killed `no_daemons` left behind, and nothing that somebody else wrote."""
    policy = _inside(root, _POLICY)
    if policy.is_file() and not policy.is_symlink() and policy.read_bytes() == _NO_DAEMONS:
        policy.unlink()


def _inside(root: Path, path: str) -> Path:
    """`path` of the root, whose directories may be links that a stranger made."""
    above, _, name = path.rpartition("/")
    return resolve_in(root, above) / name


def _names(directory: Path) -> list[tuple[str, int]]:
    return sorted((item.name, item.inode()) for item in os.scandir(directory))
