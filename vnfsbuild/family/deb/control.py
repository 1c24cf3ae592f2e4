"""Debian control data: stanzas and the relations between packages, as deb-control(5) describes them."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from vnfsbuild.errors import ResolveError

_FIELD = re.compile(r"([!-,.-9;-~][!-9;-~]*):[ \t]*(.*)")
_RELATION = re.compile(
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9+._-]*)(?::(?P<qualifier>[A-Za-z0-9-]+))?"
    r"\s*(?:\(\s*(?P<operator><<|<=|>=|>>|=|<|>)\s*(?P<version>[^\s)]+)\s*\))?"
    r"\s*(?:\[[^\]]*\])?\s*(?:<[^>]*>\s*)*"
)

# Names of fields have no case; these are the ones that are looked for.
_SPELLED = {
    name.lower(): name
    for name in (
        *("Package", "Version", "Architecture", "Multi-Arch", "Essential", "Priority", "Filename", "Size", "SHA256"),
        *("Protected", "Important", "Status", "Suite", "Codename", "Date", "Valid-Until"),
        *("Pre-Depends", "Depends", "Recommends", "Suggests", "Provides", "Conflicts", "Breaks", "Replaces"),
    )
}


@dataclass(frozen=True, slots=True)
class Relation:
    """`name:qualifier (operator version)`; what is not said is empty."""

    name: str
    operator: str = ""
    version: str = ""
    qualifier: str = ""

    def __str__(self) -> str:
        name = f"{self.name}:{self.qualifier}" if self.qualifier else self.name
        return f"{name} ({self.operator} {self.version})" if self.operator else name


# Any one of the alternatives will do; apt prefers the first.
Alternatives = tuple[Relation, ...]


def parse_stanza(text: str) -> dict[str, str]:
    """The fields of one stanza. Continuation lines stay lines of their field, without the blank that marks them.

    Raises ResolveError for a line that is none.
    """
    fields: dict[str, str] = {}
    name = ""
    for line in text.strip("\n").split("\n"):
        if line[:1] in {" ", "\t"} and name:
            fields[name] += f"\n{line[1:]}"
            continue
        match = _FIELD.fullmatch(line)
        if not match:
            raise ResolveError(f"{line[:80]!r} is not a line of control data")
        name = _SPELLED.get(match[1].lower(), match[1])
        fields[name] = match[2].rstrip()
    return fields


@functools.lru_cache(maxsize=1 << 14)
def parse_relations(text: str) -> tuple[Alternatives, ...]:
    """Read a Depends, Conflicts or Provides field: all of the groups, and of each group any alternative.

    Raises ResolveError naming what cannot be read.
    """
    groups = (group.strip() for group in text.replace("\n", " ").split(","))
    return tuple(tuple(_relation(word.strip()) for word in group.split("|")) for group in groups if group)


def _relation(text: str) -> Relation:
    match = _RELATION.fullmatch(text)
    if not match:
        raise ResolveError(f"{text[:80]!r} is not a relation to a package")
    return Relation(match["name"], match["operator"] or "", match["version"] or "", match["qualifier"] or "")


def single(text: str) -> tuple[Relation, ...]:
    """Read a field without alternatives: Provides, Conflicts, Breaks."""
    return tuple(relation for group in parse_relations(text) for relation in group)
