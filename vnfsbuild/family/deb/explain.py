"""Why there is no solution, in words: the chain from what is wanted to what is missing or excludes each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vnfsbuild.errors import ResolveError
from vnfsbuild.family.deb.control import Alternatives, Relation
from vnfsbuild.family.deb.search import Clause
from vnfsbuild.family.deb.universe import Candidate, Universe

_MOST = 12


@dataclass(frozen=True, slots=True)
class Fact:
    """Why a clause holds: `subject` is the package it is about, `objects` those it leads to."""

    subject: str
    objects: tuple[str, ...]
    text: str
    final: bool = False


class Explainer:
    """Names the reasons of clauses and tells them in order. `roots` maps what is wanted to who wants it."""

    def __init__(self, universe: Universe, roots: Mapping[str, str]) -> None:
        self._universe = universe
        self._roots = roots

    def wanted(self, name: str) -> Fact:
        return Fact("", (name,), f"{name} is wanted by {self._roots[name]}")

    def needs(self, item: Candidate, group: Alternatives) -> Fact:
        solutions = tuple(other.name for other in self._universe.solutions(group))
        text = f"{item.name} {item.version} needs {_or(group)}"
        if not solutions:
            return Fact(item.name, (), f"{text}, and {self._instead(group)}", final=True)
        if set(solutions) != {relation.name for relation in group}:
            text += f", which is {' or '.join(solutions[:5])}" + (" or others" if len(solutions) > 5 else "")
        return Fact(item.name, solutions, text)

    def conflict(self, item: Candidate, other: Candidate, relation: Relation) -> Fact:
        through = "" if relation.name == other.name else f", which {other.name} provides"
        text = f"{item.name} {item.version} conflicts with {relation}{through}, and {other.name} is {other.version}"
        return Fact(item.name, (other.name,), text, final=True)

    def _instead(self, group: Alternatives) -> str:
        return " and ".join(self._exists(relation) for relation in group)

    def _exists(self, relation: Relation) -> str:
        versions = self._universe.versions(relation.name)
        if versions and relation.name in self._universe.pins:
            return f"the recipe pins {relation.name} to {self._universe.pins[relation.name]}"
        if versions:
            return f"only {relation.name} {_and(versions)}"
        providers = self._universe.providers(relation.name)
        if providers:
            names = ", ".join(f"{item.name} {item.version}" for item in providers[:3])
            return f"no {relation.name} of that version is provided, only by {names}"
        return f"there is no {relation.name}"

    def words(self, core: Sequence[Clause]) -> str:
        """The contradiction as a paragraph: first what cannot be, then the chains that lead there."""
        facts = [clause.reason for clause in core if isinstance(clause.reason, Fact)]
        final = [fact for fact in facts if fact.final]
        chain = _ordered([fact for fact in facts if not fact.final])
        lines = [fact.text for fact in (*final, *chain)]
        more = len(lines) - _MOST
        if more > 1:
            lines = [*lines[:_MOST], f"(and {more} more)"]
        return "the packages cannot be installed together:\n" + "\n".join(f"  - {line}" for line in lines)


def _ordered(facts: Sequence[Fact]) -> list[Fact]:
    """Needs from the end of the chain to its beginning: each fact before the one that leads to its subject."""
    ordered: list[Fact] = []
    rest = list(facts)
    while rest:
        subjects = {fact.subject for fact in rest}
        free = [fact for fact in rest if not subjects & (set(fact.objects) - {fact.subject})]
        pick = free or rest[:1]
        ordered += pick
        rest = [fact for fact in rest if fact not in pick]
    return ordered


def _and(versions: Sequence[str]) -> str:
    """`1.0 exists`, `2.0, 1.0 exist`: the newest three."""
    return f"{', '.join(versions[:3])} exist{'' if len(versions) > 1 else 's'}"


def _or(group: Alternatives) -> str:
    return " or ".join(str(relation) for relation in group)


def unknown(universe: Universe, name: str, providers: Sequence[Candidate]) -> ResolveError:
    """The error for something the recipe includes that is no package."""
    pin = universe.pins.get(name)
    versions = universe.versions(name)
    if pin and versions:
        return ResolveError(
            f"the recipe wants {name}={pin}, and only {_and(versions)}", f"include {name}={versions[0]}"
        )
    if providers:
        names = ", ".join(item.name for item in providers)
        return ResolveError(f"{name} is a virtual package, provided by {names}", "include one of these")
    near = universe.near(name)
    hint = f"did you mean {' or '.join(near)}?" if near else "add a [[repo]] that has it"
    return ResolveError(f"there is no package {name}", hint)
