"""The Debian family: apt repositories and dpkg."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from vnfsbuild.family import CachingFetcher, Download
from vnfsbuild.family.deb import install as _install
from vnfsbuild.family.deb import inventory as _inventory
from vnfsbuild.family.deb import resolve as _resolve
from vnfsbuild.family.deb import scrub as _scrub
from vnfsbuild.family.deb.supply import Supply
from vnfsbuild.family.distros import MergedUsr, release
from vnfsbuild.host.fs import make_directory
from vnfsbuild.lockfile import Lock
from vnfsbuild.model import Package
from vnfsbuild.progress import Monitor
from vnfsbuild.recipe import Recipe

_USR_LINKS = ("bin", "lib", "sbin")
# Architectures whose dynamic loader is found through /lib64.
_LIB64 = frozenset({"amd64", "ppc64el"})


class Debian:
    """The family `deb`; see vnfsbuild.family.Family."""

    name = "deb"

    def resolve(self, recipe: Recipe, *, fetcher: CachingFetcher, mirrors: Mapping[str, str], monitor: Monitor) -> Lock:
        return _resolve.resolve(recipe, fetcher=fetcher, mirrors=mirrors, monitor=monitor)

    def collect(
        self, lock: Lock, directory: Path, *, download: Download, monitor: Monitor
    ) -> AbstractContextManager[Supply]:
        return Supply(lock, directory).running(download, monitor)

    def bootstrap(self, root: Path, supply: Supply) -> None:
        lock = supply.lock
        links: tuple[str, ...] = ()
        if release(lock.distro, lock.suite).merged_usr is MergedUsr.LINKS:
            links = (*_USR_LINKS, "lib64") if lock.arch in _LIB64 else _USR_LINKS
        _install.bootstrap(root, supply, usr_links=links)

    def install(self, root: Path, supply: Supply, *, requested: Iterable[str], scratch: Path, monitor: Monitor) -> None:
        stand_ins = make_directory(scratch / "stand-ins")
        named = {word.partition("=")[0] for word in requested}
        _install.install(root, supply, requested=named, stand_ins=stand_ins, monitor=monitor)
        _install.write_sources(root, supply.lock, release(supply.lock.distro, supply.lock.suite).keyrings)

    def inventory(self, root: Path) -> tuple[Package, ...]:
        return _inventory.inventory(root)

    def scrub(self, root: Path) -> tuple[str, ...]:
        return _scrub.scrub(root)


FAMILY = Debian()
