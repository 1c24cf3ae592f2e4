"""`vnfs verify`: are the capsules here still what they were when they came?"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from vnfsbuild.cli.common import ANSWERED_NO, App, command

if TYPE_CHECKING:
    from vnfsbuild.deliver.verify import Problem

_SHOWN = 40


@command("verify", example="vnfs verify\nvnfs verify compute:2 --deep")
@click.argument("capsules", nargs=-1, metavar="[CAPSULE]...")
@click.option("--deep", is_flag=True, help="Also mount the layers and compare every path with the TOC (needs root).")
def verify_command(app: App, capsules: tuple[str, ...], deep: bool) -> int:
    """Check every byte of capsules (all of them when none is given). Exit code 3 when something is wrong."""
    from vnfsbuild.deliver.verify import verify
    from vnfsbuild.host.mount import isolate
    from vnfsbuild.host.user import require_root
    from vnfsbuild.model import Reference

    if deep:
        require_root("mounting the layers of a capsule", "vnfs verify without --deep checks all digests")
        isolate()
    references = [Reference.parse(text) for text in capsules]
    problems = verify(app.store, references, deep=deep, work=app.settings.work, monitor=app.monitor)
    record = {"ok": not problems, "problems": [asdict(problem) for problem in problems]}
    app.emit(record, lambda: _text(problems))
    return ANSWERED_NO if problems else 0


def _text(problems: tuple[Problem, ...]) -> str:
    if not problems:
        return "all is as its digests say"
    lines = [f"{problem.reference}  {problem.part}: {problem.message}" for problem in problems[:_SHOWN]]
    if len(problems) > _SHOWN:
        lines.append(f"… and {len(problems) - _SHOWN} more (--json names all)")
    parts = {problem.part for problem in problems}
    if parts - {"index.json"}:
        lines.append("vnfs pull or vnfs import of the same version replaces damaged blobs by good ones")
    if "index.json" in parts:
        lines.append("bring index.json back from a backup; or move it away, and pull or import the capsules again")
    return "\n".join(lines)
