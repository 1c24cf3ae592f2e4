"""What every command shares: settings, the store, progress on standard error, answers as text or JSON."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

import click

if TYPE_CHECKING:
    from vnfsbuild.config import Settings
    from vnfsbuild.errors import VnfsError
    from vnfsbuild.progress import Monitor
    from vnfsbuild.store.capsules import Store
    from vnfsbuild.store.manifest import Capsule

P = ParamSpec("P")
ANSWERED_NO = 3


class App:
    """One run of the program. Everything is made when it is first asked for."""

    def __init__(self, *, store: Path | None, cache: Path | None, work: Path | None, file: Path | None) -> None:
        self._store, self._cache, self._work, self._file = store, cache, work, file
        self.json = False
        self.progress = "auto"

    @functools.cached_property
    def settings(self) -> Settings:
        from vnfsbuild.config import load

        return load(store=self._store, cache=self._cache, work=self._work, file=self._file)

    @functools.cached_property
    def store(self) -> Store:
        from vnfsbuild.store.capsules import Store

        return Store(self.settings.store)

    @functools.cached_property
    def monitor(self) -> Monitor:
        from vnfsbuild.cli.progress import choose

        return choose(self.progress)

    def emit(self, data: Any, text: str | Callable[[], str] = "") -> None:
        """Answer: `data` for a machine with --json, `text` for a person otherwise."""
        if self.json:
            click.echo(json.dumps(data, indent=1))
        else:
            words = text() if callable(text) else text
            if words:
                click.echo(printable(words))


def command(name: str, *, example: str) -> Callable[[Callable[Concatenate[App, P], Any]], click.Command]:
    """Make a click command that gets the App first, shows `example` in its help and knows --json and --progress."""

    modes = click.Choice(["auto", "bars", "plain", "json", "none"])
    help_names = {"help_option_names": ["-h", "--help"]}
    epilog = "\b\nExample:\n" + "\n".join(f"  {line}" for line in example.splitlines())

    def wrap(function: Callable[Concatenate[App, P], Any]) -> click.Command:
        def body(*args: Any, as_json: bool, progress: str, **options: Any) -> Any:
            app = click.get_current_context().obj
            app.json, app.progress = as_json, progress
            return function(app, *args, **options)

        functools.update_wrapper(body, function)
        listening = click.option("--progress", type=modes, default="auto", help="How to show progress on stderr.")(body)
        answering = click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")(listening)
        return click.command(name, epilog=epilog, context_settings=help_names)(answering)

    return wrap


def identity(capsule: Capsule) -> dict[str, Any]:
    """What every JSON answer says of a version, under the same keys: `digest` is the manifest's, `tree` that of what
    a node sees, `size` the bytes of all its parts."""
    return {
        "reference": capsule.reference,
        "digest": capsule.digest,
        "tree": capsule.config.tree,
        "size": capsule.size,
    }


def error_record(error: VnfsError) -> dict[str, str]:
    """An error in a JSON answer."""
    return {"ref": error.ref, "message": error.message, "hint": error.hint}


def confirm(question: str, *, yes: bool) -> bool:
    """Ask before something is lost. Without a terminal and without --yes the answer is no."""
    return yes or (sys.stdin.isatty() and click.confirm(question, err=True))


def printable(text: str) -> str:
    """Text fit for a terminal, whatever strangers wrote into it (a path, a message, what a server said): lines stay,
    other control characters and bytes that are no text are shown as escapes."""
    if text.isascii() and text.isprintable():
        return text
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def printable_line(text: str) -> str:
    """A path or a message on one line, whatever is in it."""
    return printable(text).replace("\n", "\\n")


def table(rows: Sequence[Sequence[str]], *, head: Sequence[str]) -> str:
    """Columns of plain text, the last one ragged."""
    lines = [head, *([printable_line(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def amount(number: float) -> str:
    """Bytes for people: 276.3 MB (powers of ten, as disks and networks count)."""
    for unit in ("B", "kB", "MB"):
        if abs(number) < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.2f} GB"
