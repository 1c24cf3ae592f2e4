"""How progress looks: bars on a terminal, plain lines in a log, events for a machine. All on standard error."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from vnfsbuild.cli.common import amount, printable
from vnfsbuild.host.interrupt import resource
from vnfsbuild.progress import Monitor, Silent, Step


def choose(mode: str) -> Monitor:
    """The listener for --progress; "auto" means bars on a terminal, else plain lines."""
    if mode == "none" or sys.stderr is None:  # None where the caller closed it
        return Silent()
    if mode == "json":
        return Lines(_Json())
    if mode == "bars" or (mode == "auto" and sys.stderr.isatty()):
        try:
            return Bars()
        except ImportError:
            pass
    return Lines(_Plain())


class _Plain:
    @staticmethod
    def _say(line: str) -> None:
        with suppress(OSError):  # what cannot be shown must not end what is done
            print(printable(line), file=sys.stderr, flush=True)

    def start(self, title: str) -> None:
        self._say(f"vnfs: {title} ...")

    def update(self, title: str, done: int, total: int | None, unit: str) -> None:
        self._say(f"vnfs: {title}: {_count(done, total, unit)}")

    def note(self, title: str, text: str) -> None:
        self._say(f"vnfs: {title + ': ' if title else ''}{text}")

    def end(self, title: str, seconds: float, done: int, unit: str, error: str) -> None:
        state = {"": "done in", "interrupted": "interrupted after"}.get(error, "failed after")
        counted = f", {_count(done, None, unit)}" if done else ""
        self._say(f"vnfs: {title}: {state} {seconds:.1f} s{counted}")


class _Json:
    @staticmethod
    def _say(event: str, **fields: Any) -> None:
        with suppress(OSError):
            print(json.dumps({"event": event, **fields}), file=sys.stderr, flush=True)

    def start(self, title: str) -> None:
        self._say("start", step=title)

    def update(self, title: str, done: int, total: int | None, unit: str) -> None:
        self._say("progress", step=title, done=done, total=total, unit=unit)

    def note(self, title: str, text: str) -> None:
        self._say("note", step=title, text=text)

    def end(self, title: str, seconds: float, done: int, unit: str, error: str) -> None:
        self._say("end", step=title, seconds=round(seconds, 3), done=done, unit=unit, error=error)


def _count(done: int, total: int | None, unit: str) -> str:
    if unit == "bytes":
        return f"{amount(done)} of {amount(total)}" if total else amount(done)
    counted = unit.removesuffix("s") if (total or done) == 1 else unit
    return f"{done} of {total} {counted}" if total else f"{done} {counted}"


class Lines:
    """Steps as lines: one when it starts, one every few seconds, one when it ends."""

    EVERY = 5.0

    def __init__(self, sink: _Plain | _Json) -> None:
        self._sink = sink

    @resource
    def step(self, title: str, *, total: int | None = None, unit: str = "") -> Iterator[Step]:
        self._sink.start(title)
        began = time.monotonic()
        step = _LineStep(self._sink, title, total, unit, self.EVERY)
        error = "interrupted"
        try:
            yield step
            error = ""
        except Exception as problem:
            error = str(problem) or error
            raise
        finally:
            self._sink.end(title, time.monotonic() - began, step.done, unit, error)

    def note(self, text: str) -> None:
        self._sink.note("", text)


class _LineStep:
    def __init__(self, sink: _Plain | _Json, title: str, total: int | None, unit: str, every: float) -> None:
        self._sink, self._title, self._total, self._unit, self._every = sink, title, total, unit, every
        self._lock = threading.Lock()
        self._last = time.monotonic()
        self.done = 0

    def advance(self, amount: int = 1) -> None:
        with self._lock:
            self.done += amount
            if time.monotonic() - self._last < self._every:
                return
            self._last = time.monotonic()
        self._sink.update(self._title, self.done, self._total, self._unit)

    def note(self, text: str) -> None:
        self._sink.note(self._title, text)


class Bars:
    """Steps as bars that stay when they are done. Needs rich; raises ImportError without it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description:<22}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[counted]}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
        )
        self._open = 0
        self._lock = threading.Lock()

    @resource
    def step(self, title: str, *, total: int | None = None, unit: str = "") -> Iterator[Step]:
        from rich.markup import escape

        with self._lock:
            if self._open == 0:
                self._progress.start()
            self._open += 1
        task = self._progress.add_task(escape(printable(title)), total=total, counted="")
        step = _BarStep(self._progress, task, total, unit)
        try:
            yield step
            done = max(step.done, 1)
            self._progress.update(task, total=done, completed=done)
        finally:
            with self._lock:
                self._open -= 1
                if self._open == 0:
                    self._progress.stop()
                    for finished in self._progress.task_ids:
                        self._progress.remove_task(finished)

    def note(self, text: str) -> None:
        self._progress.console.print(printable(text), markup=False, highlight=False)


class _BarStep:
    def __init__(self, progress: Any, task: Any, total: int | None, unit: str) -> None:
        self._progress, self._task, self._total, self._unit = progress, task, total, unit
        self._lock = threading.Lock()
        self.done = 0

    def advance(self, amount: int = 1) -> None:
        with self._lock:
            self.done += amount
            self._progress.update(self._task, completed=self.done, counted=_count(self.done, self._total, self._unit))

    def note(self, text: str) -> None:
        self._progress.console.print(printable(f"  {text}"), markup=False, highlight=False)
