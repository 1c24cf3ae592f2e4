"""Which paths livesync leaves to the node: globs of the capsule, what is always the node's, and mounts of its own.

A pattern protects the path it names and everything below. `*` and `?` stay within one component, `**` crosses them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from vnfsbuild.errors import VnfsError

# Kernel file systems, and where livesync keeps its own state. No list can take these out.
ALWAYS = ("/proc", "/sys", "/dev", "/run", "/var/lib/vnfs", "/.vnfs")


def ancestors(path: str) -> Iterable[str]:
    """The directories that lead to `path`, nearest first, "/" last."""
    while path != "/":
        path = path.rpartition("/")[0] or "/"
        yield path


def _translate(pattern: str) -> str:
    if not pattern.startswith("/") or "\0" in pattern:
        raise VnfsError(f"the skip pattern {pattern!r} is not an absolute path", "patterns begin with /")
    tokens = {"**": ".*", "*": "[^/]*", "?": "[^/]"}
    words = re.split(r"(\*\*|\*|\?|\[[^]/]+\])", pattern.rstrip("/"))
    return "".join(
        tokens.get(word) or (_charset(word) if odd % 2 else re.escape(word)) for odd, word in enumerate(words)
    )


def _charset(word: str) -> str:
    inner = word[1:-1].replace("\\", "\\\\")
    return f"[^{inner[1:]}]" if inner.startswith("!") else f"[{inner}]"


@dataclass(frozen=True, slots=True)
class Protection:
    """Paths that are not livesync's business: `patterns` from skip lists, `mounts` the node has of its own."""

    patterns: tuple[str, ...] = ()
    mounts: frozenset[str] = frozenset()
    _expression: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        joined = "|".join(_translate(pattern) for pattern in (*ALWAYS, *self.patterns))
        try:
            expression = re.compile(f"(?:{joined})(?:/.*)?", re.DOTALL)
        except re.error as error:
            raise VnfsError(
                f"a skip pattern cannot be read: {error}", "see docs/livesync.md for what they mean"
            ) from error
        object.__setattr__(self, "_expression", expression)

    def skipped(self, path: str) -> bool:
        """Whether a skip list names `path` or a directory above it."""
        return self._expression.fullmatch(path) is not None

    def foreign(self, path: str) -> bool:
        """Whether `path` lies on a file system that the node mounted itself, its mount point included."""
        return path in self.mounts or any(above in self.mounts for above in ancestors(path))

    def __call__(self, path: str) -> bool:
        return path != "/" and (self.skipped(path) or self.foreign(path))


def protection(patterns: Sequence[str], mounts: Iterable[str]) -> Protection:
    """Protection by `patterns`, and by `mounts` other than the root's own."""
    return Protection(tuple(patterns), frozenset(mounts) - {"/"})
