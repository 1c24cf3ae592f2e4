"""What is left to do after an update: units to reload and to restart, and whether a reboot is due."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from vnfsbuild.deliver.livesync.plan import Plan
from vnfsbuild.deliver.livesync.ssh import Connection, join
from vnfsbuild.errors import TrustError, VnfsError
from vnfsbuild.store.manifest import Capsule

_UNITS = re.compile(r"/(?:usr/)?(?:lib|etc)/systemd/system/")
_UNIT = re.compile(r"[A-Za-z0-9:_.@\\-]+\.service\Z")
# Restarting these takes the sessions, or the whole bus, with them.
_NEVER = re.compile(r"(?:dbus|dbus-broker|systemd-logind|user@.*|getty@.*|serial-getty@.*)\.service\Z")


@dataclass(frozen=True, slots=True)
class Aftermath:
    """`restart`: services that run files which are replaced or gone. `processes`: numbers of such processes that belong
    to no service. `restarted`: services that were restarted. `reboot`: why one is due; empty when none is. `reload`:
    unit files changed. `note`: what went wrong here, after the update itself was done."""

    reload: bool = False
    restart: tuple[str, ...] = ()
    processes: tuple[int, ...] = ()
    restarted: tuple[str, ...] = ()
    reboot: tuple[str, ...] = ()
    note: str = ""

    def after(self, connection: Connection, plan: Plan, *, restart: bool) -> Aftermath:
        """Look at what runs on the node now, and restart what can be when asked to. The update has been done and
        stands: what fails here becomes a note."""
        try:
            found = _running(connection, {change.path for change in plan.changes if change.live})
        except VnfsError as error:
            return replace(self, note=error.message)
        reboot = (*self.reboot, *(f"{what} runs files that were replaced" for what in found.reboot))
        looked = replace(self, restart=found.restart, processes=found.processes, reboot=reboot)
        if not restart or not looked.restart:
            return looked
        try:
            connection.call("restart", items=join(looked.restart))
        except VnfsError as error:
            return replace(looked, note=error.message)
        return replace(looked, restart=(), restarted=looked.restart)


def aftermath(plan: Plan, booted: Capsule, target: Capsule, release: str) -> Aftermath:
    """What follows from the plan alone. `booted` is the version whose kernel runs, `release` that kernel's."""
    reasons = []
    if booted.kernel.digest != target.kernel.digest:
        reasons.append(f"the kernel of {target.reference} ({target.config.kernel.release}) is another")
    modules = (f"/usr/lib/modules/{release}/", f"/lib/modules/{release}/")
    if any(change.path.startswith(modules) for change in plan.changes):
        reasons.append(f"modules of the running kernel {release} changed")
    return Aftermath(reload=any(_UNITS.match(change.path) for change in plan.changes), reboot=tuple(reasons))


def _running(connection: Connection, replaced: set[str]) -> Aftermath:
    fields = connection.call("processes").split(b"\0")
    if fields[-2:] != [b"end", b""] or len(fields) % 3 != 2:
        raise TrustError(f"{connection.node}: the list of processes is cut off")
    units, never, strays = set(), set(), set()
    for number, group, files in _triples(fields[:-2]):
        if not number.isdigit() or replaced.isdisjoint(os.fsdecode(files).split("\n")):
            continue
        name = os.fsdecode(group).rpartition("/")[2]
        if name == "init.scope":
            never.add("the service manager")
        elif not _UNIT.match(name):
            strays.add(int(number))
        elif _NEVER.match(name):
            never.add(name)
        else:
            units.add(name)
    return Aftermath(restart=tuple(sorted(units)), processes=tuple(sorted(strays)), reboot=tuple(sorted(never)))


def _triples(fields: list[bytes]) -> Iterable[tuple[bytes, bytes, bytes]]:
    return zip(fields[::3], fields[1::3], fields[2::3], strict=True)
