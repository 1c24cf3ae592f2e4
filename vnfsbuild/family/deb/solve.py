"""Which packages a fresh root needs, in the order of preference of apt-get.

First the walk that apt does (depcache.cc, MarkInstall, on an empty system): everything asked for is chosen, then
dependencies depth first, the first alternative that does not conflict with what is chosen. Where that walk ends in a
conflict, apt guesses; we search completely, with the same preferences (`search`), and when there is no solution say
why. The result is closed and free of conflicts; equal input gives equal output.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from vnfsbuild.errors import ResolveError
from vnfsbuild.family.deb.control import Alternatives, Relation
from vnfsbuild.family.deb.explain import Explainer, unknown
from vnfsbuild.family.deb.search import Clause, Search
from vnfsbuild.family.deb.universe import Candidate, Universe


def solve(universe: Universe, wanted: Sequence[str]) -> tuple[Candidate, ...]:
    """The packages that a root with `wanted` and the base has, sorted by name.

    Raises ResolveError that says in words why there is no such set.
    """
    asked = _names(universe, wanted)
    base = [name for name in universe.base() if name not in asked]
    roots = dict.fromkeys(base, "the base system") | dict.fromkeys(asked, "the recipe")
    chosen = _walk(universe, list(roots))
    if chosen is None:
        chosen = _search(universe, roots)
    return tuple(chosen[name] for name in sorted(chosen))


def closure(universe: Universe, names: Iterable[str], chosen: Sequence[Candidate]) -> frozenset[str]:
    """The names of `names` and of what they depend on, within `chosen`."""
    state = _Chosen()
    for item in chosen:
        state.add(item)
    found: set[str] = set()
    todo = [name for name in names if name in state.packages]
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            for group in state.packages[name].depends:
                todo += [item.name for item in universe.solutions(group) if item.name in state.packages]
    return frozenset(found)


def _names(universe: Universe, wanted: Sequence[str]) -> dict[str, None]:
    """Real names for what the recipe includes: a virtual package stands for its only provider, as with apt-get."""
    names: dict[str, None] = {}
    for name in wanted:
        if universe.candidate(name):
            names[name] = None
            continue
        providers = universe.providers(name)
        if len(providers) != 1 or name in universe.pins:
            raise unknown(universe, name, providers)
        names[providers[0].name] = None
    return names


# ---- the walk of apt


@dataclass(slots=True)
class _Chosen:
    """What is chosen so far, by name and by what it provides, and what it forbids."""

    packages: dict[str, Candidate] = field(default_factory=dict)
    by_name: dict[str, list[Candidate]] = field(default_factory=dict)
    forbidden: dict[str, list[tuple[Relation, Candidate]]] = field(default_factory=dict)

    def add(self, item: Candidate) -> None:
        self.packages[item.name] = item
        for name in {item.name, *(provided.name for provided in item.provides)}:
            self.by_name.setdefault(name, []).append(item)
        for relation in item.conflicts:
            self.forbidden.setdefault(relation.name, []).append((relation, item))

    def satisfies(self, group: Alternatives) -> bool:
        return any(item.fulfils(relation) for relation in group for item in self.by_name.get(relation.name, ()))

    def admits(self, item: Candidate) -> bool:
        """Whether `item` conflicts with nothing that is chosen, in either direction."""
        for relation in item.conflicts:
            if any(
                other.name != item.name and other.fulfils(relation) for other in self.by_name.get(relation.name, ())
            ):
                return False
        for name in {item.name, *(provided.name for provided in item.provides)}:
            for relation, owner in self.forbidden.get(name, ()):
                if owner.name != item.name and item.fulfils(relation):
                    return False
        return True


def _walk(universe: Universe, roots: Sequence[str]) -> dict[str, Candidate] | None:
    """The choice of apt-get, or None where it runs into a conflict."""
    chosen = _Chosen()
    for name in roots:
        item = universe.candidate(name)
        if item is None or not chosen.admits(item):
            return None
        chosen.add(item)
    for name in roots:
        # Iterators on a stack, not recursion: chains of dependencies are longer than Python's limit is high.
        stack = [_needs(chosen.packages[name])]
        while stack:
            step = next(stack[-1], None)
            if step is None:
                stack.pop()
                continue
            group, hard = step
            if chosen.satisfies(group):
                continue
            choice = next((item for item in universe.solutions(group) if chosen.admits(item)), None)
            if choice is None or (not hard and not _installable(universe, choice)):
                if hard:
                    return None
                continue
            chosen.add(choice)
            stack.append(_needs(choice))
    return chosen.packages


def _needs(item: Candidate) -> Iterator[tuple[Alternatives, bool]]:
    yield from ((group, True) for group in item.depends)
    yield from ((group, False) for group in item.recommends)


def _installable(universe: Universe, item: Candidate) -> bool:
    """Whether each of what a recommended package depends on exists at all: else it is left out, not an error."""
    seen = {item.name}
    todo = [item]
    while todo:
        for group in todo.pop().depends:
            solutions = universe.solutions(group)
            if not solutions:
                return False
            if solutions[0].name not in seen:
                seen.add(solutions[0].name)
                todo.append(solutions[0])
    return True


# ---- the complete search


def _search(universe: Universe, roots: dict[str, str]) -> dict[str, Candidate]:
    explainer = Explainer(universe, roots)
    reachable = _reachable(universe, roots)
    search = Search(_clauses(universe, roots, reachable, explainer))
    order = list(roots)

    def undecided(true: set[str], false: set[str]) -> str | None:
        """The first alternative that is left of the first need that is not met, walking as apt does."""
        seen: set[str] = set()
        stack = [iter(order)]
        while stack:
            name = next(stack[-1], None)
            if name is None:
                stack.pop()
                continue
            if name in seen or name not in true:
                continue
            seen.add(name)
            below: list[str] = []
            for group in reachable[name].depends:
                solutions = [item.name for item in universe.solutions(group)]
                met = [item for item in solutions if item in true]
                if not met:
                    return next(item for item in solutions if item not in false)
                below += met
            stack.append(iter(below))
        return None

    chosen, core = search.run(undecided)
    if chosen is None:
        raise ResolveError(explainer.words(core), "change the recipe's packages, or add a repository")
    needed = _needed(universe, roots, chosen, reachable)
    return {name: reachable[name] for name in needed}


def _needed(universe: Universe, roots: Iterable[str], chosen: set[str], reachable: dict[str, Candidate]) -> set[str]:
    """What of `chosen` something needs: propagation may have picked more on paths that were given up."""
    found: set[str] = set()
    todo = list(roots)
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            for group in reachable[name].depends:
                todo += [item.name for item in universe.solutions(group) if item.name in chosen]
    return found


def _reachable(universe: Universe, roots: Iterable[str]) -> dict[str, Candidate]:
    found: dict[str, Candidate] = {}
    todo = [item for item in map(universe.candidate, roots) if item]
    while todo:
        item = todo.pop()
        if item.name not in found:
            found[item.name] = item
            for group in item.depends:
                todo += universe.solutions(group)
    return found


def _clauses(
    universe: Universe, roots: Iterable[str], reachable: dict[str, Candidate], explainer: Explainer
) -> Iterator[Clause]:
    """The rules as clauses: what is wanted, what each needs, what excludes each other."""
    for name in roots:
        yield Clause(positive=(name,), negative=(), reason=explainer.wanted(name))
    named: dict[str, list[Candidate]] = {}
    for item in reachable.values():
        for name in {item.name, *(provided.name for provided in item.provides)}:
            named.setdefault(name, []).append(item)
    for name in sorted(reachable):
        item = reachable[name]
        for group in item.depends:
            solutions = tuple(other.name for other in universe.solutions(group))
            if item.name not in solutions:
                yield Clause(positive=solutions, negative=(name,), reason=explainer.needs(item, group))
        for relation in item.conflicts:
            for other in named.get(relation.name, ()):
                if other.name != name and other.fulfils(relation):
                    yield Clause((), (name, other.name), explainer.conflict(item, other, relation))
