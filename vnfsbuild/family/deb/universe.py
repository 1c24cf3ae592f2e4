"""Every package that could be chosen, of several repositories and local files: one candidate a name, as apt has it.

The candidate is the highest version, or the one that is pinned. Equal versions: the repository named first.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from vnfsbuild.errors import ResolveError, TrustError
from vnfsbuild.family.deb import version
from vnfsbuild.family.deb.control import Alternatives, Relation, parse_relations, single
from vnfsbuild.family.deb.index import Index
from vnfsbuild.family.deb.repo import package_url

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9+.-]*")
_VERSION = re.compile(r"[A-Za-z0-9.+:~-]+")
_PRIORITIES = ("required", "important", "standard", "optional", "extra")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """The one version of a package that may be chosen. `depends` is Pre-Depends before Depends, the order in which apt
    follows them; `conflicts` holds Breaks too."""

    name: str
    version: str
    arch: str
    url: str
    size: int
    sha256: str
    essential: bool
    important: bool
    priority: int
    depends: tuple[Alternatives, ...]
    recommends: tuple[Alternatives, ...]
    conflicts: tuple[Relation, ...]
    provides: tuple[Relation, ...]

    def fulfils(self, relation: Relation) -> bool:
        """Whether this package, by its name or by what it provides, is what `relation` means."""
        if relation.name == self.name:
            return self._own_arch(relation) and version.satisfies(self.version, relation.operator, relation.version)
        # A versioned relation is met only by a provision that says a version.
        return any(
            item.name == relation.name
            and (item.version or not relation.operator)
            and version.satisfies(item.version, relation.operator, relation.version)
            for item in self.provides
        )

    def _own_arch(self, relation: Relation) -> bool:
        return relation.qualifier in {"", "any", "native", self.arch} or self.arch == "all"


def candidate(stanza: Mapping[str, str], *, url: str, recommends: bool) -> Candidate:
    """Read a stanza. Raises TrustError for one without what a lock needs, ResolveError for relations that are none."""
    try:
        name, number, arch = stanza["Package"], stanza["Version"], stanza["Architecture"]
        size, sha256 = int(stanza["Size"]), stanza["SHA256"].lower()
    except (KeyError, ValueError) as error:
        raise TrustError(
            f"the index entry of {stanza.get('Package', '?')} lacks {error}", "use another mirror"
        ) from error
    if not _NAME.fullmatch(name) or not _VERSION.fullmatch(number) or not _SHA256.fullmatch(sha256) or size < 0:
        raise TrustError(f"the index has a malformed entry: {name!r} {number!r} {sha256!r}", "use another mirror")
    priority = stanza.get("Priority", "optional")
    return Candidate(
        name=name,
        version=number,
        arch=arch,
        url=url,
        size=size,
        sha256=f"sha256:{sha256}",
        essential=stanza.get("Essential") == "yes",
        important="yes" in {stanza.get("Important"), stanza.get("Protected")},
        priority=_PRIORITIES.index(priority) if priority in _PRIORITIES else len(_PRIORITIES),
        depends=(*parse_relations(stanza.get("Pre-Depends", "")), *parse_relations(stanza.get("Depends", ""))),
        recommends=parse_relations(stanza.get("Recommends", "")) if recommends else (),
        conflicts=(*single(stanza.get("Conflicts", "")), *single(stanza.get("Breaks", ""))),
        provides=single(stanza.get("Provides", "")),
    )


@dataclass(eq=False)
class Universe:
    """Answers the solver. `indexes` in order of preference, `local` are files given by the recipe (they win over the
    indexes), `pins` map names to the exact versions that are wanted."""

    indexes: Sequence[Index]
    arch: str
    recommends: bool = False
    local: Mapping[str, Candidate] = field(default_factory=dict)
    pins: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.candidate = functools.cache(self._candidate)
        self.solutions = functools.cache(self._solutions)
        self._met = functools.cache(self._first_met)

    def _candidate(self, name: str) -> Candidate | None:
        pinned = self.pins.get(name)
        local = self.local.get(name)
        if local and pinned in {None, local.version}:
            return local
        best: tuple[dict[str, str], Index] | None = None
        for stanza, index in self._versions(name):
            if pinned is not None and version.compare(stanza["Version"], pinned) != 0:
                continue
            if best is None or version.compare(stanza["Version"], best[0]["Version"]) > 0:
                best = stanza, index
        if best is None:
            return None
        stanza, index = best
        url = package_url(index.base, stanza.get("Filename", ""))
        return candidate(stanza, url=url, recommends=self.recommends)

    def _versions(self, name: str) -> Iterator[tuple[dict[str, str], Index]]:
        for index in self.indexes:
            for stanza in index.stanzas(name):
                if stanza.get("Architecture") in {self.arch, "all"} and "Version" in stanza:
                    yield stanza, index

    def versions(self, name: str) -> tuple[str, ...]:
        """Every version of `name` there is, the newest first."""
        found = {stanza["Version"] for stanza, _ in self._versions(name)}
        if name in self.local:
            found.add(self.local[name].version)
        return tuple(sorted(found, key=version.key, reverse=True))

    def providers(self, name: str) -> tuple[Candidate, ...]:
        """The candidates that provide the virtual package `name`, in any version."""
        names = dict.fromkeys(item for index in self.indexes for item in index.providers(name))
        names |= dict.fromkeys(item.name for item in self.local.values() if any(p.name == name for p in item.provides))
        found = (self.candidate(item) for item in names)
        return tuple(item for item in found if item and any(p.name == name for p in item.provides))

    def _solutions(self, group: Alternatives) -> tuple[Candidate, ...]:
        """The candidates any of which satisfies `group`, in apt's order of preference."""
        ordered: dict[str, Candidate] = {}
        for relation in group:
            own = self.candidate(relation.name)
            found = [own] if own and own.fulfils(relation) else []
            others = [item for item in self.providers(relation.name) if item is not own and item.fulfils(relation)]
            for item in (*found, *self._by_preference(others)):
                ordered.setdefault(item.name, item)
        return tuple(ordered.values())

    def _by_preference(self, providers: list[Candidate]) -> list[Candidate]:
        """apt's order of providers (CompareProviders in its depcache.cc): Essential, Important, priority, and then what
        its cache met last."""
        ranks = [(not item.essential, not item.important, item.priority) for item in providers]
        if len(set(ranks)) == len(ranks):
            return [item for _, item in sorted(zip(ranks, providers, strict=True), key=lambda pair: pair[0])]
        keyed = [((*rank, *self._met(item.name)), item) for rank, item in zip(ranks, providers, strict=True)]
        return [item for _, item in sorted(keyed, key=lambda pair: pair[0])]

    def _first_met(self, name: str) -> tuple[int, int]:
        for number, index in enumerate(self.indexes):
            place = index.first_mention(name)
            if place >= 0:
                return -number, -place
        return -len(self.indexes), 0

    def base(self) -> tuple[str, ...]:
        """The names of the packages that no root is without: Essential or required, sorted."""
        names = {name for index in self.indexes for name in index.base_names()}
        found = (self.candidate(name) for name in sorted(names))
        return tuple(item.name for item in found if item and (item.essential or item.priority == 0))

    def near(self, name: str) -> list[str]:
        """Names of packages that look like `name`."""
        names: Iterable[str] = dict.fromkeys([*self.local, *(item for index in self.indexes for item in index.names())])
        # Comparing with all of 60,000 takes seconds; a typing error rarely spoils the first two letters and the length.
        alike = [item for item in names if abs(len(item) - len(name)) <= 2 and item[:1] == name[:1]]
        return difflib.get_close_matches(name, alike, 3, 0.7)


def pinned(words: Iterable[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Split what a recipe includes, `name` or `name=version`, into names and pins. Raises ResolveError for others."""
    names: dict[str, None] = {}
    pins: dict[str, str] = {}
    for word in words:
        name, equals, number = word.partition("=")
        if not _NAME.fullmatch(name) or (equals and not _VERSION.fullmatch(number)):
            raise ResolveError(f"{word!r} is not a package", "packages.include takes names, or name=version")
        if equals and pins.setdefault(name, number) != number:
            raise ResolveError(f"the recipe wants {name} in two versions: {pins[name]} and {number}")
        names[name] = None
    return tuple(names), pins
