"""The Debian family: apt repositories and dpkg."""

from __future__ import annotations

from collections.abc import Mapping

from vnfsbuild.family import CachingFetcher
from vnfsbuild.family.deb import resolve as _resolve
from vnfsbuild.lockfile import Lock
from vnfsbuild.progress import Monitor
from vnfsbuild.recipe import Recipe


class Debian:
    """The family `deb`; see vnfsbuild.family.Family."""

    def resolve(self, recipe: Recipe, *, fetcher: CachingFetcher, mirrors: Mapping[str, str], monitor: Monitor) -> Lock:
        return _resolve.resolve(recipe, fetcher=fetcher, mirrors=mirrors, monitor=monitor)


FAMILY = Debian()
