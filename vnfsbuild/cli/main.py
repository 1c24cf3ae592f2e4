"""The entry point: a table of commands that imports none of them, and the end of every error's way.

`vnfs --help` must answer at once, so a command's module is imported only when that command runs.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import click

from vnfsbuild import __version__
from vnfsbuild.cli.common import App, error_record, printable
from vnfsbuild.errors import HostError, Interrupted, NoSpace, UsageError, VnfsError, did_you_mean
from vnfsbuild.host import interrupt

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

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            hint = did_you_mean(args[0], COMMANDS, "vnfs --help lists them")
            raise click.UsageError(f"No such command {args[0]!r}: {hint}", ctx)
        return super().resolve_command(ctx, args)

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
    as_json = "--json" in own
    interruption = interrupt.Interruption()
    try:
        code = _run(words, as_json=as_json)
        interrupt.finish()
    except (click.Abort, KeyboardInterrupt, Interrupted) as error:
        interrupt.finish()
        said = error if isinstance(error, Interrupted) else Interrupted()
        left = interrupt.close_all()
        if left:
            said.message += f", but for this: {left}"
        with suppress(OSError):  # the terminal may be what went away
            _report(said, as_json=as_json)
        code = 128 + interruption.signal
    with suppress(OSError):
        if sys.stdout:
            sys.stdout.flush()
    sys.exit(code)


def _run(words: list[str], *, as_json: bool) -> int:
    """Run a command to its exit code, every error but an interruption told."""
    try:
        code = vnfs.main(args=words, prog_name="vnfs", standalone_mode=False)
        if sys.stdout:  # None where the caller closed it
            sys.stdout.flush()
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.ClickException as error:
        if as_json:
            return _report(UsageError(error.format_message(), _usage_hint(error)), as_json=True)
        error.show()
        return error.exit_code
    except Interrupted:
        raise
    except VnfsError as error:
        return _report(error, as_json=as_json)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if "VNFS_DEBUG" in os.environ:
            raise
        return _report(_explained(error), as_json=as_json)
    return code if isinstance(code, int) else 0


def _usage_hint(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return f"{context.command_path} --help" if context else "vnfs --help"


def _explained(error: OSError) -> VnfsError:
    """What the kernel refused, in a sentence that names the file."""
    where = f" {os.fsdecode(error.filename)}" if isinstance(error.filename, str | bytes | os.PathLike) else ""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return NoSpace(f"no space left on the device{f' of{where}' if where else ''}", NoSpace.FREE_SOME)
    if error.errno in {errno.EACCES, errno.EPERM}:
        return HostError(f"may not use{where or ' what it needs'}", "run it as root, or as the owner of that file")
    said = error.strerror or str(error) or type(error).__name__
    hint = "look at the kernel's log" if error.errno == errno.EIO else "VNFS_DEBUG=1 shows where in vnfs this happened"
    return HostError(f"cannot use{where}: {said}" if where else said, hint)


def _report(error: VnfsError, *, as_json: bool) -> int:
    """Say what went wrong, and return the exit code."""
    if as_json:
        click.echo(json.dumps({"error": error_record(error), **({"done": error.done} if error.done else {})}))
        return error.exit_code
    with suppress(OSError):
        click.echo(printable(f"vnfs: {error.message}"), err=True)
        if error.hint:
            click.echo(printable(f"  {error.hint}"), err=True)
    return error.exit_code
