"""The entry point: a table of commands that imports none of them, and the end of every error's way.

`vnfs --help` must answer at once, so a command's module is imported only when that command runs.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click

from vnfsbuild import __version__
from vnfsbuild.cli.common import App, error_record, printable
from vnfsbuild.errors import HostError, Interrupted, NoSpace, UsageError, VnfsError

SPACE_HINT = "free some, or point VNFS_STORE, VNFS_CACHE or VNFS_WORK elsewhere"

# Command to (module, one line of help). The function in the module has the command's name.
COMMANDS: dict[str, tuple[str, str]] = {
    "lock": ("build", "resolve a recipe and write its lock"),
    "build": ("build", "compile recipes into capsules"),
    "list": ("look", "capsules in the store"),
    "show": ("look", "what a version is made of"),
    "history": ("look", "versions of a capsule, with their messages"),
    "diff": ("look", "what changed from one version to another"),
    "verify": ("verify", "check every byte of capsules"),
    "mount": ("edit", "open a capsule for editing"),
    "shell": ("edit", "run a command inside a mounted capsule"),
    "umount": ("edit", "publish the edits as the next version"),
    "close": ("edit", "throw the edits away"),
    "export": ("move", "write a capsule to a portable file"),
    "import": ("move", "take a capsule in from a file"),
    "push": ("move", "send a capsule to a registry"),
    "pull": ("move", "fetch a capsule from a registry"),
    "serve": ("serve", "hand capsules to booting nodes"),
    "boot": ("serve", "start a capsule in QEMU, through the real serving path"),
    "livesync": ("sync", "bring running nodes to a version, without a reboot"),
    "status": ("sync", "what running nodes run, and what drifted"),
    "doctor": ("doctor", "what this host lacks, and how to install it"),
}

EPILOG = "A capsule is NAME, NAME:VERSION, NAME:TAG or NAME@sha256:…; a bare NAME means its newest version."


class Table(click.Group):
    """Commands by name, imported when they are wanted."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"vnfsbuild.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=Table, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--store", type=click.Path(path_type=Path), help="Where capsules lie (VNFS_STORE).")
@click.option("--cache", type=click.Path(path_type=Path), help="Where downloads are kept (VNFS_CACHE).")
@click.option("--work", type=click.Path(path_type=Path), help="Scratch space and mounts (VNFS_WORK).")
@click.option("--config", type=click.Path(path_type=Path), help="Settings file (VNFS_CONFIG).")
@click.version_option(__version__, prog_name="vnfs")
@click.pass_context
def vnfs(ctx: click.Context, store: Path | None, cache: Path | None, work: Path | None, config: Path | None) -> None:
    """Compile recipes into versioned capsules, and keep a cluster on them."""
    ctx.obj = App(store=store, cache=cache, work=work, file=config)


def main(argv: list[str] | None = None) -> NoReturn:
    """Run a command and exit: 0 ok, 1 failed, 2 wrong usage, 3 answered no, 130 interrupted (128 + the signal)."""
    words = sys.argv[1:] if argv is None else argv
    own = words[: words.index("--")] if "--" in words else words
    interruption = Interruption()
    try:
        code = vnfs.main(args=words, prog_name="vnfs", standalone_mode=False)
        _leave(code if isinstance(code, int) else 0)
    except click.exceptions.Exit as leave:
        _leave(leave.exit_code)
    except (click.Abort, KeyboardInterrupt):
        with suppress(OSError):  # the terminal may be what went away
            _report(Interrupted("interrupted; everything is as it was"), as_json="--json" in own)
        _leave(128 + interruption.signal)
    except click.ClickException as error:
        if "--json" in own:
            _leave(_report(UsageError(error.format_message(), _usage_hint(error)), as_json=True))
        error.show()
        _leave(error.exit_code)
    except Interrupted as error:
        _report(error, as_json="--json" in own)
        _leave(128 + interruption.signal)
    except VnfsError as error:
        _leave(_report(error, as_json="--json" in own))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _leave(1)
    except OSError as error:
        if "VNFS_DEBUG" in os.environ:
            raise
        _leave(_report(_explained(error), as_json="--json" in own))


def program() -> NoReturn:
    """What the command `vnfs` is: `main`, without the tidying up of the interpreter, which takes longer than much of
    what is asked. Everything of ours is closed when `main` ends, and the kernel takes the memory."""
    for stream in range(3):  # else a file that we open takes the place of one that the caller closed
        try:
            os.fstat(stream)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    try:
        main()
    except SystemExit as end:
        os._exit(end.code if isinstance(end.code, int) else 1)


class Interruption:
    """Makes SIGTERM and SIGHUP unwind as Ctrl-C does, so that what is open is closed and removed. The first signal
    counts: a second one must not cut the cleaning short."""

    def __init__(self) -> None:
        self.signal = signal.SIGINT
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # What nohup, or a shell's &, has us ignore stays ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._interrupt)

    def _interrupt(self, number: int, _frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, lambda *_: None)  # not SIG_IGN: what we still start would inherit that
        raise KeyboardInterrupt


def _usage_hint(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return f"{context.command_path} --help" if context else "vnfs --help"


def _explained(error: OSError) -> VnfsError:
    """What the kernel refused, in a sentence that names the file."""
    where = f" {os.fsdecode(error.filename)}" if isinstance(error.filename, str | bytes | os.PathLike) else ""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return NoSpace(f"no space left on the device{f' of{where}' if where else ''}", SPACE_HINT)
    if error.errno in {errno.EACCES, errno.EPERM}:
        return HostError(f"may not use{where or ' what it needs'}", "run it as root, or as the owner of that file")
    said = error.strerror or str(error) or type(error).__name__
    hint = "look at the kernel's log" if error.errno == errno.EIO else "VNFS_DEBUG=1 shows where in vnfs this happened"
    return HostError(f"cannot use{where}: {said}" if where else said, hint)


def _report(error: VnfsError, *, as_json: bool) -> int:
    """Say what went wrong, and return the exit code."""
    if as_json:
        click.echo(json.dumps({"error": error_record(error)}))
        return error.exit_code
    with suppress(OSError):
        click.echo(printable(f"vnfs: {error.message}"), err=True)
        if error.hint:
            click.echo(printable(f"  {error.hint}"), err=True)
    return error.exit_code


def _leave(code: int) -> NoReturn:
    if sys.stdout:  # None where the caller closed it
        sys.stdout.flush()
    sys.exit(code)
