"""From a recipe to a lock: find the mirrors, open the repositories, solve, and write down what was decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from vnfsbuild.errors import HostError, ResolveError
from vnfsbuild.family import CachingFetcher, distros
from vnfsbuild.family import mirrors as mirror_list
from vnfsbuild.family.deb import solve
from vnfsbuild.family.deb.control import parse_stanza
from vnfsbuild.family.deb.repo import Opened, Repository, open_repository
from vnfsbuild.family.deb.universe import Candidate, Universe, candidate, pinned
from vnfsbuild.host.run import run
from vnfsbuild.lockfile import Lock, LockedPackage
from vnfsbuild.progress import Monitor
from vnfsbuild.recipe import Recipe
from vnfsbuild.store.cas import hash_file


def resolve(recipe: Recipe, *, fetcher: CachingFetcher, mirrors: Mapping[str, str], monitor: Monitor) -> Lock:
    """See vnfsbuild.family.Family.resolve."""
    row = distros.release(recipe.distro.id, recipe.distro.suite)
    arch = recipe.distro.arch
    if arch not in row.architectures:
        raise ResolveError(f"{row.title} {row.suite} is not built for {arch}", f"known: {', '.join(row.architectures)}")
    repositories = _repositories(recipe, row, mirrors)
    opened = _open(repositories, arch, fetcher, monitor)
    names, pins = pinned(recipe.packages)
    local = _local(recipe, arch)
    universe = Universe(
        indexes=[index for item in opened for index in item.indexes],
        arch=arch,
        recommends=recipe.recommends,
        local=local,
        pins=pins,
    )
    with monitor.step("solve", unit="packages") as step:
        chosen = solve.solve(universe, (*names, *local))
        essential = solve.closure(universe, [item.name for item in chosen if item.essential], chosen)
        step.advance(len(chosen))
    return Lock(
        inputs=recipe.inputs,
        distro=row.id,
        suite=row.suite,
        arch=arch,
        repositories=tuple(item.locked for item in opened),
        packages=tuple(_lock(item, essential=item.name in essential) for item in chosen),
        tools=_tools(universe, row),
    )


def _repositories(recipe: Recipe, row: distros.Release, mirrors: Mapping[str, str]) -> list[Repository]:
    """The pockets of the distribution, then the recipe's own repositories."""
    own = recipe.distro.keyring
    keyrings = (Path(own),) if own else tuple(Path(path) for path in row.keyrings if Path(path).is_file())
    if not keyrings:
        raise HostError(f"the keys of {row.title} are not on this host", f"apt-get install {row.keyring_package}")
    components = recipe.distro.components or row.components
    located = mirror_list.locate(row, recipe=recipe.distro.mirror, site=mirrors)
    signers = () if own else row.signers
    found = [Repository(uri, pocket.suite, components, keyrings, signers) for pocket, uri in located.items()]
    extra = [Repository(repo.uri.rstrip("/"), repo.suite, repo.components, (Path(repo.key),)) for repo in recipe.repos]
    return [*found, *extra]


def _open(repositories: Sequence[Repository], arch: str, fetcher: CachingFetcher, monitor: Monitor) -> list[Opened]:
    opened = []
    with monitor.step("read indexes", total=len(repositories), unit="repositories") as step:
        for repo in repositories:
            opened.append(open_repository(repo, arch, fetcher=fetcher))
            step.advance()
    return opened


def _local(recipe: Recipe, arch: str) -> dict[str, Candidate]:
    """The recipe's own package files, by name."""
    found: dict[str, Candidate] = {}
    for path in recipe.local:
        stanza = parse_stanza(run(["dpkg-deb", "-f", path], what=f"reading the package file {path}").text)
        blob = hash_file(path)
        stanza |= {"Size": str(blob.size), "SHA256": blob.hex}
        item = candidate(stanza, url=path.as_uri(), recommends=recipe.recommends)
        if item.arch not in {arch, "all"}:
            raise ResolveError(f"{path} is for {item.arch}, and the recipe for {arch}")
        if item.name in found:
            raise ResolveError(f"{path} is a second package {item.name}", "packages.local may name each package once")
        found[item.name] = item
    return found


def _tools(universe: Universe, row: distros.Release) -> tuple[LockedPackage, ...]:
    """What the initrd takes programs from, in the versions of the release; not installed, so nothing else is needed."""
    found = [(name, universe.candidate(name)) for name in row.tools]
    missing = [name for name, item in found if item is None]
    if missing:
        raise ResolveError(f"the repositories have no {', '.join(missing)}, which the initrd needs")
    return tuple(_lock(item, essential=False) for _, item in found if item)


def _lock(item: Candidate, *, essential: bool) -> LockedPackage:
    return LockedPackage(item.name, item.version, item.arch, item.url, item.size, item.sha256, essential)
