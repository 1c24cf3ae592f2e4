"""Order of Debian versions, as deb-version(7) says and dpkg's lib/dpkg/version.c does."""

from __future__ import annotations

import functools
import re
from typing import Any

_PART = re.compile(r"([^0-9]*)([0-9]*)")
_END: tuple[Any, ...] = ((0,), (0, ""))


@functools.lru_cache(maxsize=1 << 15)
def key(version: str) -> tuple[Any, ...]:
    """A sort key: keys compare as dpkg compares versions."""
    epoch, colon, rest = version.strip().partition(":")
    if not colon:
        epoch, rest = "0", version.strip()
    upstream, _, revision = rest.rpartition("-") if "-" in rest else (rest, "", "")
    return _number(epoch), _parts(upstream), _parts(revision)


def _parts(text: str) -> tuple[tuple[Any, ...], ...]:
    """Alternating words and numbers. A tilde sorts before the end, the end before letters, letters before the rest."""
    parts = [
        ((*(_order(character) for character in word), 0), _number(digits))
        for word, digits in _PART.findall(text)
        if word or digits
    ]
    # A leading zero is worth as much as nothing, but counts as a part: what follows it is compared with the end.
    return (*(parts or [_END]), _END)


def _order(character: str) -> int:
    if character == "~":
        return -1
    return ord(character) + (0 if character.isascii() and character.isalpha() else 256)


def _number(digits: str) -> tuple[int, str]:
    """A number of any length as something that compares: int() refuses very long ones."""
    digits = digits.lstrip("0")
    return len(digits), digits


def compare(left: str, right: str) -> int:
    """Negative, zero or positive as `left` is older than, equal to or newer than `right`."""
    a, b = key(left), key(right)
    return (a > b) - (a < b)


def satisfies(version: str, operator: str, wanted: str) -> bool:
    """Whether `version` stands in the relation `operator` (<<, <=, =, >=, >>) to `wanted`; always without operator."""
    if not operator:
        return True
    order = compare(version, wanted)
    return {
        "<<": order < 0,
        "<=": order <= 0,
        "<": order <= 0,
        "=": order == 0,
        ">=": order >= 0,
        ">": order >= 0,
        ">>": order > 0,
    }[operator]
