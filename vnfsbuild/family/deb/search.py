"""A complete search over yes-or-no choices: unit propagation, learning from conflicts, jumping back.

Small and general: names and clauses in, a choice or the clauses that contradict each other out. It knows nothing of
packages; the order in which choices are tried is the caller's. Method: Marques-Silva and Sakallah, GRASP (1996).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, eq=False)
class Clause:
    """At least one name of `positive` is chosen or one of `negative` is not. `reason` is for the caller; `parents` are
    the clauses that a learned one follows from."""

    positive: tuple[str, ...]
    negative: tuple[str, ...]
    reason: object = None
    parents: tuple[Clause, ...] = ()

    def literals(self) -> Iterable[tuple[str, bool]]:
        yield from ((name, True) for name in self.positive)
        yield from ((name, False) for name in self.negative)


# Given the names that are chosen and those that are excluded: which to choose next, or None when all is well.
Choose = Callable[[set[str], set[str]], str | None]


class Search:
    """One search. `run` once."""

    def __init__(self, clauses: Iterable[Clause]) -> None:
        self._clauses: list[Clause] = []
        self._watching: dict[str, list[Clause]] = {}
        self._true: set[str] = set()
        self._false: set[str] = set()
        self._trail: list[tuple[str, Clause | None, int]] = []  # name, why, level
        self._level = 0
        for clause in clauses:
            self._add(clause)

    def _add(self, clause: Clause) -> None:
        self._clauses.append(clause)
        for name in {*clause.positive, *clause.negative}:
            self._watching.setdefault(name, []).append(clause)

    def run(self, choose: Choose) -> tuple[set[str] | None, tuple[Clause, ...]]:
        """The chosen names, or None and the given clauses that cannot all hold."""
        broken = self._propagate(self._clauses)
        while True:
            if broken is not None:
                if self._level == 0:
                    return None, self._core(broken)
                learned, level = self._learn(broken)
                self._back(level)
                self._add(learned)
                broken = self._propagate([learned])
                continue
            name = choose(self._true, self._false)
            if name is None:
                return set(self._true), ()
            self._level += 1
            self._assign(name, True, None)
            broken = self._propagate(self._watching.get(name, []))

    def _value(self, name: str, sign: bool) -> bool | None:
        if name in self._true:
            return sign
        return (not sign) if name in self._false else None

    def _assign(self, name: str, sign: bool, why: Clause | None) -> None:
        (self._true if sign else self._false).add(name)
        self._trail.append((name, why, self._level))

    def _propagate(self, clauses: Iterable[Clause]) -> Clause | None:
        """Follow what has only one way left; the clause that has none, if it comes to that."""
        todo = list(clauses)
        position = 0
        while position < len(todo):
            clause = todo[position]
            position += 1
            open_literal = None
            for name, sign in clause.literals():
                value = self._value(name, sign)
                if value or (value is None and open_literal is not None):
                    break
                if value is None:
                    open_literal = name, sign
            else:
                if open_literal is None:
                    return clause
                self._assign(*open_literal, clause)
                todo += self._watching.get(open_literal[0], ())
        return None

    def _learn(self, broken: Clause) -> tuple[Clause, int]:
        """Resolve backwards along the trail until one literal of the current level is left (the first unique
        implication point). The clause that follows, and the level to which it sends us back."""
        level = {name: at for name, _, at in self._trail}
        literals = dict(broken.literals())
        parents = [broken]
        for name, why, _ in reversed(self._trail):
            if name not in literals:
                continue
            if sum(level[item] == self._level for item in literals) == 1:
                break
            if why is not None:
                del literals[name]
                literals |= {item: sign for item, sign in why.literals() if item != name}
                parents.append(why)
        levels = sorted({level[name] for name in literals})
        positive = tuple(name for name, sign in literals.items() if sign)
        negative = tuple(name for name, sign in literals.items() if not sign)
        back = levels[-2] if len(levels) > 1 else 0
        return Clause(positive, negative, None, tuple(parents)), back

    def _back(self, level: int) -> None:
        while self._trail and self._trail[-1][2] > level:
            name = self._trail.pop()[0]
            self._true.discard(name)
            self._false.discard(name)
        self._level = level

    def _core(self, broken: Clause) -> tuple[Clause, ...]:
        """The given clauses behind a conflict that needs no choice, in the order in which one leads to the next."""
        why = {name: clause for name, clause, _ in self._trail}
        found: dict[Clause, None] = {}
        seen: set[Clause] = set()
        todo = [broken]
        while todo:
            clause = todo.pop()
            if clause in seen:
                continue
            seen.add(clause)
            if clause.parents:
                todo += clause.parents
            else:
                found[clause] = None
            todo += [parent for name, _ in clause.literals() if (parent := why.get(name)) is not None]
        return tuple(found)
