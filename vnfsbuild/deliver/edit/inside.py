"""Programs inside an open capsule: the network and DNS of the host, apt with lists of its own, no daemons."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from vnfsbuild.deliver.edit import mounts
from vnfsbuild.family.deb import shell as deb
from vnfsbuild.host.sandbox import Bind, interactive_in, run_in
from vnfsbuild.host.user import require_root
from vnfsbuild.progress import Monitor

_SHELLS = ("/bin/bash", "/bin/sh")


def shell(work: Path, cache: Path, name: str, argv: Sequence[str], monitor: Monitor) -> int:
    """Run `argv` (or an interactive shell) inside the mounted capsule on the caller's own input and output, and return
    its exit code. Package lists are fetched first where apt needs them. Raises Conflict when it is not mounted."""
    require_root("a shell inside a capsule")
    at = mounts.point_of(work, name)
    env = {"TERM": os.environ.get("TERM", "dumb"), "VNFS_CAPSULE": name}
    shown: tuple[Bind, ...] = ()
    apt = cache / "apt" / name
    if os.path.lexists(f"{at}/var/lib/dpkg/status"):
        shown = deb.binds(at, apt)
        env |= deb.environment(shown)
    words = list(argv) or [next(path for path in _SHELLS if os.path.lexists(f"{at}{path}") or path == _SHELLS[-1])]
    with deb.no_daemons(at), deb.resolver(at):
        if shown and deb.stale(apt):
            _lists(at, apt, argv, shown=shown, env=env, monitor=monitor)
        sys.stdout.flush()
        return interactive_in(at, words, env=env, binds=shown)


def _lists(
    at: Path, apt: Path, argv: Sequence[str], *, shown: Sequence[Bind], env: dict[str, str], monitor: Monitor
) -> None:
    if deb.uses_packages(argv):
        with monitor.step("fetch package lists"):
            run_in(at, ["apt-get", "update", "-q"], env=env, network=True, binds=shown, what="apt-get update")
        deb.updated(apt)
    elif not argv:
        monitor.note("package lists are missing or a day old: apt-get update before you install something")
