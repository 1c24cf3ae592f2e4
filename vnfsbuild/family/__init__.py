"""Families of distributions: how a recipe becomes a lock, and a lock a root.

The protocol is here, the code behind it is imported when a recipe needs it. Which distributions exist is data
(`distros`); a family knows none by name.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Protocol

from vnfsbuild.family.distros import Release, family_of, release
from vnfsbuild.lockfile import Lock
from vnfsbuild.model import Fetcher
from vnfsbuild.progress import Monitor
from vnfsbuild.recipe import Recipe
from vnfsbuild.store.cas import LocalBlobs

__all__ = ["CachingFetcher", "Family", "Release", "get", "release"]

# Family to the module that has its `FAMILY`.
_MODULES: Mapping[str, str] = {"deb": "vnfsbuild.family.deb"}


class CachingFetcher(Fetcher, Protocol):
    """A fetcher whose cache also takes in what we make of a download: an index without its compression."""

    @property
    def blobs(self) -> LocalBlobs:
        """The cache."""


class Family(Protocol):
    """What every family of distributions does."""

    def resolve(self, recipe: Recipe, *, fetcher: CachingFetcher, mirrors: Mapping[str, str], monitor: Monitor) -> Lock:
        """Decide on every package of `recipe` from signed indexes. `mirrors` maps a distribution's id to a URI.

        Raises ResolveError, TrustError, NetworkError, or HostError when no mirror or keyring is known.
        """


def get(distro: str) -> Family:
    """The family of the distribution with that id. Raises UsageError for one that is in no row."""
    family: Family = importlib.import_module(_MODULES[family_of(distro)]).FAMILY
    return family
