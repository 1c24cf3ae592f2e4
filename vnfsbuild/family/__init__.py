"""Families of distributions: how a recipe becomes a lock, and a lock a root.

The protocol is here, the code behind it is imported when a recipe needs it. Which distributions exist is data
(`distros`); a family knows none by name.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from vnfsbuild.family.distros import Release, family_of, release
from vnfsbuild.lockfile import Lock
from vnfsbuild.model import Blob, Fetcher, Package
from vnfsbuild.progress import Monitor
from vnfsbuild.recipe import Recipe
from vnfsbuild.store.cas import LocalBlobs

__all__ = ["CachingFetcher", "Download", "Family", "Release", "Supply", "get", "release"]

# Family to the module that has its `FAMILY`.
_MODULES: Mapping[str, str] = {"deb": "vnfsbuild.family.deb"}


class CachingFetcher(Fetcher, Protocol):
    """A fetcher whose cache also takes in what we make of a download: an index without its compression."""

    @property
    def blobs(self) -> LocalBlobs:
        """The cache."""


class Download(Protocol):
    """Gets many files at once, verified; `done` is called in worker threads as each is there. `cancel` ends it."""

    def __call__(
        self,
        items: Sequence[tuple[str, Blob]],
        *,
        done: Callable[[Blob, Path], None],
        advance: Callable[[int], None],
        cancel: threading.Event,
    ) -> None:
        """Raises NetworkError or TrustError; the first error cancels the rest."""


class Supply(Protocol):
    """Packages of a lock that are on their way; made and understood by one family."""

    lock: Lock


class Family(Protocol):
    """What every family of distributions does. A root is made in this order: collect, bootstrap, install, scrub."""

    name: str

    def resolve(self, recipe: Recipe, *, fetcher: CachingFetcher, mirrors: Mapping[str, str], monitor: Monitor) -> Lock:
        """Decide on every package of `recipe` from signed indexes. `mirrors` maps a distribution's id to a URI.

        Raises ResolveError, TrustError, NetworkError, or HostError when no mirror or keyring is known.
        """

    def collect(
        self, lock: Lock, directory: Path, *, download: Download, monitor: Monitor
    ) -> AbstractContextManager[Supply]:
        """Fetch the packages of the lock into the empty `directory`, in the background while the context lasts.

        What goes wrong on the way is raised where somebody waits for a package. Leaving the context early stops it.
        """

    def bootstrap(self, root: Path, supply: Supply) -> None:
        """Put into `root` what the package manager needs to run. Afterwards programs run inside it."""

    def install(self, root: Path, supply: Supply, *, requested: Iterable[str], scratch: Path, monitor: Monitor) -> None:
        """Unpack and configure everything by the distribution's own tools, inside the root. `requested` are the
        packages that the recipe names, `scratch` an existing directory. Raises CommandFailed, or VnfsError when what
        is installed in the end is not the lock."""

    def inventory(self, root: Path) -> tuple[Package, ...]:
        """The packages that the root's own database says are installed, sorted."""

    def scrub(self, root: Path) -> tuple[str, ...]:
        """Remove caches, identities and logs, and return what went."""


def get(distro: str) -> Family:
    """The family of the distribution with that id. Raises UsageError for one that is in no row."""
    family: Family = importlib.import_module(_MODULES[family_of(distro)]).FAMILY
    return family
