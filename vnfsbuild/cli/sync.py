"""`vnfs livesync` and `vnfs status`: running nodes, over ssh."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vnfsbuild.cli.common import ANSWERED_NO, App, command, error_record, printable_line
from vnfsbuild.errors import Interrupted

if TYPE_CHECKING:
    from vnfsbuild.deliver.livesync import Drift, Node, Plan, Report, Ssh, Status

_FILE = click.Path(path_type=Path, dir_okay=False)


def _connecting(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say how nodes are reached."""
    for option in (
        click.option("-j", "--jobs", type=click.IntRange(1, 512), default=32, show_default=True, help="Nodes at once."),
        click.option("--accept-new", is_flag=True, help="Trust host keys of nodes never seen before, and keep them."),
        click.option("--known-hosts", type=_FILE, help="File of host keys, instead of ssh's own."),
        click.option("--ssh-option", "ssh_options", multiple=True, metavar="KEY=VALUE", help="Handed to ssh as -o."),
        click.option("--identity", type=_FILE, help="Private key to log in with."),
    ):
        function = option(function)
    return function


@command("livesync", example="vnfs livesync compute n[01-16] --plan\nvnfs livesync compute:7 root@n01:2222 --restart")
@click.argument("name")
@click.argument("nodes", nargs=-1, required=True)
@click.option("--plan", "plan_only", is_flag=True, help="Say what would change, and change nothing.")
@click.option("--undo", is_flag=True, help="Go back to what each node ran before its last livesync.")
@click.option(
    "--on-drift",
    type=click.Choice(["keep", "overwrite", "fail"]),
    default="keep",
    show_default=True,
    help="Files changed on the node by hand: leave them, overwrite them (copies are kept), or apply nothing.",
)
@click.option("--restart", is_flag=True, help="Restart the services that still run replaced files.")
@_connecting
def livesync_command(
    app: App,
    *,
    name: str,
    nodes: tuple[str, ...],
    plan_only: bool,
    undo: bool,
    on_drift: str,
    restart: bool,
    jobs: int,
    **connecting: Any,
) -> int:
    """Bring running NODES to a version of the capsule NAME, without a reboot.

    NODES are [user@]host[:port] and ranges such as n[01-16].
    """
    from vnfsbuild.deliver.livesync import Options, Policy, livesync
    from vnfsbuild.host.mount import isolate
    from vnfsbuild.host.user import require_root

    chosen = _nodes(nodes)
    target = app.store.get(name)
    ssh = _ssh(app, **connecting)
    if not plan_only:
        require_root("livesync", "run it with sudo; --plan works without")
        isolate()
    options = Options(Policy(on_drift), plan_only, undo, restart, _skip(target.config.state.mode), jobs)
    try:
        reports = livesync(app.store, target, chosen, ssh, options, work=app.settings.work, monitor=app.monitor)
    except KeyboardInterrupt:
        raise Interrupted("interrupted", "run it again to finish the nodes that were being updated") from None
    app.emit([_report_record(report) for report in reports], "\n".join(_report_text(report) for report in reports))
    return _code((report.error is not None for report in reports), any(report.state == "refused" for report in reports))


@command("status", example="vnfs status n[01-16]\nvnfs status n01 --json")
@click.argument("nodes", nargs=-1, required=True)
@_connecting
def status_command(app: App, nodes: tuple[str, ...], jobs: int, **connecting: Any) -> int:
    """Say which version each of NODES runs, and which files are not what that version says.

    Exits with 3 when something drifted.
    """
    from vnfsbuild.deliver.livesync import status

    ssh = _ssh(app, **connecting)
    found = status(app.store, _nodes(nodes), ssh, skip=_skip("stateless"), jobs=jobs, monitor=app.monitor)
    app.emit([_status_record(item) for item in found], "\n".join(_status_text(item) for item in found))
    return _code((item.error is not None for item in found), any(item.drift or item.unfinished for item in found))


def _code(failed: Any, said_no: bool) -> int:
    if any(failed):
        return 1
    return ANSWERED_NO if said_no else 0


def _nodes(words: tuple[str, ...]) -> tuple[Node, ...]:
    from vnfsbuild.deliver.livesync import parse

    return parse(words)


def _skip(mode: str) -> tuple[str, ...]:
    """What the profile that comes with vnfs leaves to the node, for capsules that bring no list of their own."""
    from vnfsbuild.config import data_directory
    from vnfsbuild.hybrid.policy import profile

    return profile(mode, data_directory("capsules")).livesync_skip


def _ssh(
    app: App, identity: Path | None, ssh_options: tuple[str, ...], known_hosts: Path | None, accept_new: bool
) -> Ssh:
    from vnfsbuild.deliver.livesync import Ssh
    from vnfsbuild.errors import UsageError

    if identity and not identity.is_file():
        raise UsageError(f"there is no key {identity}", "name the private key that the nodes know")
    if accept_new and not known_hosts:
        known_hosts = app.settings.store / "known_hosts"
    absolute = known_hosts.absolute() if known_hosts else None
    return Ssh(identity.absolute() if identity else None, ssh_options, absolute, accept_new)


def _drift_text(drift: Drift) -> str:
    why = f" ({drift.because})" if drift.because else ""
    return f"{printable_line(drift.path)}: {', '.join(drift.differs)}{why}"


def _error_text(node: Node, error: Any) -> str:
    hint = f"\n  {error.hint}" if error.hint else ""
    message = error.message if error.message.startswith(str(node)) else f"{node}: {error.message}"
    return f"{message}{hint}"


def _counts(plan: Plan) -> str:
    from vnfsbuild.deliver.livesync import Kind

    words = {Kind.ADD: "added", Kind.CHANGE: "changed", Kind.DELETE: "deleted"}
    counted = [f"{sum(c.kind is kind for c in plan.changes)} {word}" for kind, word in words.items()]
    return ", ".join([*counted, f"{len(plan.drift)} drifted", f"{len(plan.skipped)} left to the node"])


def _report_text(report: Report) -> str:
    if report.error:
        return _error_text(report.node, report.error)
    marks = {"add": "+", "change": "~", "delete": "-"}
    lines = [f"{report.node}: {report.state}: {report.before} -> {report.after}: {_counts(report.plan)}"]
    if report.state == "planned":
        for change in report.plan.changes:
            own = ", the node's own" if change.drifted else ""
            what = f" ({', '.join(change.differs)}{own})" if change.kind == "change" or own else ""
            lines.append(f"  {marks[change.kind]} {printable_line(change.path)}{what}")
    kept = "left as it is" if report.state != "refused" else "nothing was applied"
    lines += [f"  ! {_drift_text(drift)}: drift, {kept}" for drift in report.plan.drift]
    lines += [f"  copies of what was overwritten: {report.backup}"] if report.backup else []
    after = report.aftermath
    lines += [f"  restarted: {', '.join(after.restarted)}"] if after.restarted else []
    lines += [f"  restart: {', '.join(after.restart)}"] if after.restart else []
    lines += [f"  processes that run replaced files: {', '.join(map(str, after.processes))}"] if after.processes else []
    lines += [f"  reboot due: {reason}" for reason in after.reboot]
    lines += [f"  {after.note}"] if after.note else []
    return "\n".join(lines)


def _status_text(item: Status) -> str:
    if item.error:
        return _error_text(item.node, item.error)
    count = f"{len(item.drift)} drifted" if item.drift else "no drift"
    lines = [f"{item.node}: {item.capsule}:{item.version} {item.manifest}: {count}"]
    lines += [f"  a livesync to {item.unfinished} was cut off: run it again"] if item.unfinished else []
    return "\n".join([*lines, *(f"  {_drift_text(drift)}" for drift in item.drift)])


def _drift_records(drift: tuple[Drift, ...]) -> list[dict[str, Any]]:
    return [{"path": item.path, "differs": item.differs, "because": item.because} for item in drift]


def _report_record(report: Report) -> dict[str, Any]:
    after = report.aftermath
    return {
        "node": str(report.node),
        "state": report.state,
        "from": report.before,
        "to": report.after,
        "changes": [
            {"path": c.path, "kind": c.kind, "differs": c.differs, "drifted": c.drifted} for c in report.plan.changes
        ],
        "drift": _drift_records(report.plan.drift),
        "skipped": report.plan.skipped,
        "backup": report.backup,
        "restart": after.restart,
        "restarted": after.restarted,
        "processes": after.processes,
        "reboot": after.reboot,
        "note": after.note,
        "error": error_record(report.error) if report.error else None,
    }


def _status_record(item: Status) -> dict[str, Any]:
    return {
        "node": str(item.node),
        "capsule": item.capsule,
        "version": item.version,
        "reference": f"{item.capsule}:{item.version}" if item.capsule else "",
        "digest": item.manifest,
        "tree": item.tree,
        "drift": _drift_records(item.drift),
        "unfinished": item.unfinished,
        "error": error_record(item.error) if item.error else None,
    }
