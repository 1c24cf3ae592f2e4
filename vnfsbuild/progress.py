"""Progress as an observer beside the logic: the library reports steps, whoever listens decides how they look.

This module owns the protocol and the silent listener. Bars, log lines and JSON events live in the command line.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Step(Protocol):
    """One running step. Both methods may be called from any thread."""

    def advance(self, amount: int = 1) -> None:
        """Count `amount` more units of the step's total as done."""

    def note(self, text: str) -> None:
        """Say one line that belongs to the step (a warning, a package that is being configured)."""


class Monitor(Protocol):
    """Hears what happens while it happens."""

    def step(self, title: str, *, total: int | None = None, unit: str = "") -> AbstractContextManager[Step]:
        """Open a step; leaving the context ends it, an exception fails it.

        `unit` is "bytes" or the plural of what is counted ("packages"); `total` None means unknown.
        """

    def note(self, text: str) -> None:
        """Say one line outside of any step."""


class _SilentStep:
    def advance(self, amount: int = 1) -> None:
        pass

    def note(self, text: str) -> None:
        pass


class Silent:
    """A monitor for callers that do not listen."""

    def step(self, title: str, *, total: int | None = None, unit: str = "") -> AbstractContextManager[Step]:  # noqa: ARG002
        return nullcontext(_SilentStep())

    def note(self, text: str) -> None:
        pass
