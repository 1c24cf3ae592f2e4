"""In which order packages are unpacked and configured, as their relations demand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vnfsbuild.errors import ResolveError
from vnfsbuild.family.deb.control import parse_relations, parse_stanza, single
from vnfsbuild.lockfile import LockedPackage

Groups = tuple[frozenset[str], ...]


@dataclass(frozen=True, slots=True)
class Relations:
    """Who needs whom among the packages of a lock: groups of names, one of each must be there. Versions were the
    solver's business. A virtual name stands for the packages of the lock that provide it."""

    pre_depends: dict[str, Groups]
    depends: dict[str, Groups]

    @classmethod
    def read(cls, stanzas: Mapping[str, str]) -> Relations:
        """From the control stanzas of packages, by name. Raises ResolveError naming the package whose is damaged."""
        fields = {name: _fields(name, stanza) for name, stanza in stanzas.items()}
        provided: dict[str, set[str]] = {name: {name} for name in stanzas}
        for name, stanza in fields.items():
            for virtual in single(stanza.get("Provides", "")):
                provided.setdefault(virtual.name, set()).add(name)

        def groups(stanza: Mapping[str, str], field: str) -> Groups:
            relations = parse_relations(stanza.get(field, ""))
            return tuple(frozenset().union(*(provided.get(one.name, ()) for one in group)) for group in relations)

        return cls(
            {name: groups(stanza, "Pre-Depends") for name, stanza in fields.items()},
            {name: groups(stanza, "Depends") for name, stanza in fields.items()},
        )

    def ordered(self, packages: Iterable[LockedPackage]) -> list[LockedPackage]:
        """The packages, what others depend on first; circles are cut by name. Policy does not promise a preinst more
        than its Pre-Depends, but apt unpacks in this order, and there are packages that have come to count on it."""
        known = {item.name: item for item in packages}
        seen: set[str] = set()
        result: list[LockedPackage] = []
        for first in sorted(known):
            stack = [(first, False)]
            while stack:
                name, complete = stack.pop()
                if complete:
                    result.append(known[name])
                elif name not in seen:
                    seen.add(name)
                    stack.append((name, True))
                    needed = self.targets((*self.depends[name], *self.pre_depends[name]))
                    stack += [(other, False) for other in sorted(needed, reverse=True) if other in known]
        return result

    @staticmethod
    def met(groups: Groups, have: set[str]) -> bool:
        return all(group & have for group in groups)

    @staticmethod
    def targets(groups: Groups) -> set[str]:
        return {name for group in groups for name in group}

    def complete(self, wanted: set[str], unpacked: set[str], configured: set[str]) -> set[str]:
        """Those of `wanted` that can be configured now, with all that they depend on."""
        ready: set[str] = set()
        for name in sorted(wanted & unpacked):
            closure, pending = set(), [name]
            while pending:
                one = pending.pop()
                if one in configured or one in closure:
                    continue
                closure.add(one)
                for group in (*self.depends[one], *self.pre_depends[one]):
                    pending += sorted(group & (unpacked | configured)) or sorted(group)
            if closure <= unpacked:
                ready |= closure
        return ready


def _fields(name: str, stanza: str) -> dict[str, str]:
    try:
        return parse_stanza(stanza)
    except ResolveError as error:
        raise ResolveError(f"the package {name}: {error.message}", error.hint) from error


def batches(packages: Iterable[LockedPackage], count: int) -> list[list[str]]:
    """Names, in the order given, in at most `count` groups of about the same size. The cut follows from the packages
    alone, never from what happens to be ready, so that builds stay the same."""
    ordered = list(packages)
    share = sum(item.size for item in ordered) / count or 1
    groups: list[list[str]] = [[] for _ in range(count)]
    done = 0
    for item in ordered:
        groups[min(int(done / share), count - 1)].append(item.name)
        done += item.size
    return [group for group in groups if group]
