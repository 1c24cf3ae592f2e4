"""mount, shell, umount, close: editing a capsule."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from vnfsbuild.cli.common import App, amount, command, confirm, identity, printable
from vnfsbuild.errors import Conflict, Interrupted

if TYPE_CHECKING:
    from vnfsbuild.deliver.edit.publish import Outcome


@command("mount", example="vnfs mount compute\nvnfs mount compute:3 --at /srv/edit")
@click.argument("name", metavar="NAME[:VERSION]")
@click.option("--at", type=click.Path(path_type=Path), help="Where to show it (default: /mnt/NAME).")
def mount_command(app: App, name: str, at: Path | None) -> None:
    """Open a capsule for editing.

    A writable view of the version appears; the version itself is never changed. "vnfs umount" publishes what you
    changed as the next version, "vnfs close" throws it away. Edits survive a reboot: mount again to see them.
    """
    from vnfsbuild.deliver.edit.mounts import mount

    mounted = mount(app.store, app.settings.work, name, at)
    state = mounted.state
    again = " (with the edits that were left here)" if mounted.resumed else ""
    data = {"reference": state.reference, "digest": state.digest, "at": state.at, "resumed": mounted.resumed}
    app.emit(data, f"{state.reference} is mounted at {state.at}{again}")


@command("shell", example="vnfs shell compute\nvnfs shell compute -- apt-get install -y tree")
@click.argument("name")
@click.argument("argv", nargs=-1, type=click.UNPROCESSED, metavar="[-- CMD...]")
def shell_command(app: App, name: str, argv: tuple[str, ...]) -> int:
    """Run a command, or a shell, inside a mounted capsule.

    /proc, /dev, DNS and the network are there while it runs and leave no trace; no service is started by a package
    that is installed. The exit code is the command's.
    """
    from vnfsbuild.deliver.edit.inside import shell
    from vnfsbuild.model import check_name

    settings = app.settings
    return shell(settings.work, settings.cache, check_name(name), argv, app.monitor)


@command("umount", example='vnfs umount compute -m "chrony: our time servers"')
@click.argument("name")
@click.option("-m", "--message", default="", help="What was changed, for the history.")
def umount_command(app: App, name: str, message: str) -> None:
    """Publish what was changed as the next version.

    Takes as long as storing the changes. When nothing was changed there is no new version. A process that is still
    inside is named, and nothing happens.
    """
    from vnfsbuild.deliver.edit.publish import umount
    from vnfsbuild.model import check_name

    try:
        outcome = umount(app.store, app.settings.work, check_name(name), message, app.monitor)
    except KeyboardInterrupt:
        raise Interrupted(
            "interrupted; the edits are kept", f"vnfs umount {name} publishes them, vnfs mount {name} shows them"
        ) from None
    app.emit(_record(outcome), lambda: _sentence(outcome))
    if not app.json:
        for warning in outcome.warnings:
            click.echo(printable(f"warning: {warning}"), err=True)


def _record(outcome: Outcome) -> dict[str, object]:
    capsule, layer = outcome.capsule, outcome.layer
    return {
        "base": outcome.base,
        **(identity(capsule) if capsule else dict.fromkeys(("reference", "digest", "tree", "size"))),
        "layer": {"digest": layer.digest, "size": layer.size} if layer else None,
        "changed": outcome.changed,
        "removed": outcome.removed,
        "dropped": list(outcome.dropped),
        "warnings": list(outcome.warnings),
    }


def _sentence(outcome: Outcome) -> str:
    dropped = ""
    if outcome.dropped:
        shown = ", ".join(outcome.dropped[:3]) + (", ..." if len(outcome.dropped) > 3 else "")
        dropped = f"\nnot published (identities, caches, logs): {len(outcome.dropped)} paths: {shown}"
    if outcome.capsule is None or outcome.layer is None:
        return f"nothing was changed: {outcome.base} is unmounted, there is no new version{dropped}"
    return (
        f"{outcome.capsule.reference} is published: {outcome.changed} paths written, {outcome.removed} removed, "
        f"{amount(outcome.layer.size)}\n{outcome.capsule.digest}{dropped}"
    )


@command("close", example="vnfs close compute --yes")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
def close_command(app: App, name: str, yes: bool) -> None:
    """Throw the edits away.

    Asks first when there are any; without a terminal it needs --yes.
    """
    from vnfsbuild.deliver.edit.mounts import close, edited_paths
    from vnfsbuild.model import check_name

    work = app.settings.work
    edits = edited_paths(work, check_name(name))
    if edits and not confirm(f"{name} has {edits} edited paths. Throw them away?", yes=yes):
        raise Conflict(
            f"{name} has {edits} edited paths; nothing was thrown away", f"vnfs close {name} --yes throws them away"
        )
    state = close(work, name)
    app.emit(
        {"reference": state.reference, "thrown_away": edits}, f"{state.reference} is closed, nothing was published"
    )
