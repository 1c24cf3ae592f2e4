"""Bring running nodes from one version to another without a reboot, and say what drifted on them.

Per node: ask, plan, stage, verify, apply, verify, and only then say on the node that it runs the new version. Whatever
cuts this off, running it again finishes it. One node's failure is that node's alone.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from vnfsbuild.deliver.livesync import facts
from vnfsbuild.deliver.livesync.aftermath import Aftermath, aftermath
from vnfsbuild.deliver.livesync.nodes import Node
from vnfsbuild.deliver.livesync.plan import Drift, Plan, Policy, differences, make_plan, operations, staged
from vnfsbuild.deliver.livesync.ssh import Connection, Ssh, connect, join
from vnfsbuild.deliver.livesync.survey import Versions, current_version, survey
from vnfsbuild.errors import Conflict, HostError, NoSpace, TrustError, VnfsError
from vnfsbuild.host.fs import work_directory
from vnfsbuild.host.mount import layers
from vnfsbuild.host.run import which
from vnfsbuild.progress import Monitor, Silent
from vnfsbuild.store.capsules import Store
from vnfsbuild.store.manifest import Capsule
from vnfsbuild.store.toc import Entry

T = TypeVar("T", "Report", "Status")


@dataclass(frozen=True, slots=True)
class Options:
    """How livesync behaves. `skip` is used for capsules that bring no skip list of their own; `plan` changes nothing;
    `undo` goes back to what a node ran before."""

    policy: Policy = Policy.KEEP
    plan: bool = False
    undo: bool = False
    restart: bool = False
    skip: tuple[str, ...] = ()
    jobs: int = 32


@dataclass(frozen=True, slots=True)
class Report:
    """What came of one node. `state` is planned, updated, unchanged, refused (drift, and the policy is to fail) or
    failed (`error` says why). `backup` is where the node keeps copies of its own files that were overwritten."""

    node: Node
    state: str
    before: str = ""
    after: str = ""
    plan: Plan = field(default_factory=Plan)
    backup: str = ""
    aftermath: Aftermath = field(default_factory=Aftermath)
    error: VnfsError | None = None


@dataclass(frozen=True, slots=True)
class Status:
    """What a node runs, and the paths at which it is not what that version says. `unfinished` is the digest that a
    livesync which was cut off was going to."""

    node: Node
    capsule: str = ""
    version: int = 0
    manifest: str = ""
    tree: str = ""
    drift: tuple[Drift, ...] = ()
    unfinished: str = ""
    error: VnfsError | None = None


class _Views:
    """Read-only mounts of versions, made when the first node needs one."""

    def __init__(self, store: Store, work: Path, stack: ExitStack) -> None:
        self._store, self._work, self._stack = store, work, stack
        self._lock = threading.Lock()
        self._views: dict[str, Path] = {}

    def of(self, capsule: Capsule) -> Path:
        with self._lock:
            if capsule.digest not in self._views:
                place = self._stack.enter_context(work_directory(self._work, "livesync"))
                view = self._stack.enter_context(layers(self._store.layer_paths(capsule), place))
                self._views[capsule.digest] = view
            return self._views[capsule.digest]


def livesync(
    store: Store,
    target: Capsule,
    nodes: Sequence[Node],
    ssh: Ssh,
    options: Options,
    *,
    work: Path,
    monitor: Monitor | None = None,
) -> tuple[Report, ...]:
    """Bring `nodes` to `target` (with undo: to what each ran before), many at once. Reports come in their order.

    Needs root where files are to be sent, for the mounts of the version they come from.
    """
    which("ssh")
    which("rsync")
    versions = Versions(store)
    with ExitStack() as stack:
        views = _Views(store, work, stack)

        def one(node: Node, stop: threading.Event) -> Report:
            try:
                with connect(node, ssh, exclusive=not options.plan, stop=stop) as connection:
                    return _Update(connection, versions, views, target, options).run()
            except (VnfsError, OSError) as error:
                return Report(node, "failed", error=_typed(error, node))

        return _everywhere("livesync", nodes, one, options.jobs, monitor or Silent())


def status(
    store: Store,
    nodes: Sequence[Node],
    ssh: Ssh,
    *,
    skip: tuple[str, ...] = (),
    jobs: int = 32,
    monitor: Monitor | None = None,
) -> tuple[Status, ...]:
    """What each node runs, and its drift from that. Changes nothing, needs no root here."""
    which("ssh")
    versions = Versions(store)

    def one(node: Node, stop: threading.Event) -> Status:
        try:
            with connect(node, ssh, exclusive=False, stop=stop) as connection:
                return _status(connection, versions, skip)
        except (VnfsError, OSError) as error:
            return Status(node, error=_typed(error, node))

    return _everywhere("status", nodes, one, jobs, monitor or Silent())


def _typed(error: VnfsError | OSError, node: Node) -> VnfsError:
    return error if isinstance(error, VnfsError) else HostError(f"{node}: {error}")


def _everywhere(
    title: str, nodes: Sequence[Node], one: Callable[[Node, threading.Event], T], jobs: int, monitor: Monitor
) -> tuple[T, ...]:
    """Run `one` for all nodes, `jobs` at a time, and count those that it succeeds for. Ctrl-C ends the connections and
    waits for the threads."""
    stop = threading.Event()
    with monitor.step(title, total=len(nodes), unit="nodes") as step, ThreadPoolExecutor(jobs) as pool:
        running = [pool.submit(one, node, stop) for node in nodes]
        try:
            for done in as_completed(running):
                if done.result().error is None:
                    step.advance()
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return tuple(future.result() for future in running)


def _status(connection: Connection, versions: Versions, skip: tuple[str, ...]) -> Status:
    inspection = facts.inspect(connection)
    capsule, tree = current_version(inspection, versions, connection.node)
    said = inspection.provenance
    found = survey(connection, inspection, versions, [said.manifest, said.base], target=capsule, skip=skip)
    plan = make_plan(tree, tree, found.live, found.among, protected=found.protected, guests=found.guests)
    return Status(
        connection.node,
        capsule.config.name,
        capsule.config.version,
        capsule.digest,
        capsule.config.tree,
        plan.drift,
        inspection.journal[0] if inspection.journal else "",
    )


class _Update:
    """One node on its way to one version."""

    def __init__(
        self, connection: Connection, versions: Versions, views: _Views, target: Capsule, options: Options
    ) -> None:
        self.connection, self.versions, self.views = connection, versions, views
        self.node, self.options = connection.node, options
        self.inspection = facts.inspect(connection)
        self.current, self.current_tree = current_version(self.inspection, versions, self.node)
        self.target, self.target_tree = self._target(target)

    def _target(self, wanted: Capsule) -> tuple[Capsule, dict[str, Entry]]:
        said = self.inspection.provenance
        digest = wanted.digest
        if self.options.undo:
            digest = said.previous
            if not digest:
                raise Conflict(f"{self.node} has not been livesynced since it booted", "there is nothing to undo")
        capsule, tree = self.versions.get(
            digest, f"{self.node} shall run" if not self.options.undo else f"{self.node} ran"
        )
        if not capsule.config.name == wanted.config.name == self.current.config.name:
            raise Conflict(
                f"{self.node} runs {self.current.reference}, which is not a version of {wanted.config.name}",
                "boot the node from the other capsule; livesync goes from version to version of one",
            )
        return capsule, tree

    def run(self) -> Report:
        plan = self.plan()
        report = Report(self.node, "planned", self.current.reference, self.target.reference, plan)
        booted = self.versions.find(self.inspection.provenance.base or self.current.digest)
        later = aftermath(plan, booted[0] if booted else self.current, self.target, self.inspection.release)
        if self.options.plan:
            return replace(report, aftermath=later)
        if self.options.policy is Policy.FAIL and plan.drift:
            return replace(report, state="refused")
        if not plan.changes and self.current.digest == self.target.digest and not self.inspection.journal:
            return replace(report, state="unchanged")
        backup = self.apply(plan) if plan.changes else ""
        self.finish(reload=later.reload)
        later = later.after(self.connection, plan, restart=self.options.restart)
        return replace(report, state="updated", backup=backup, aftermath=later)

    def plan(self) -> Plan:
        journal = self.inspection.journal
        halfway = self.versions.find(journal[0]) if journal else None
        made_of = [self.current.digest, self.inspection.provenance.base, journal[0] if journal else ""]
        skip = self.options.skip
        found = survey(self.connection, self.inspection, self.versions, made_of, target=self.target, skip=skip)
        return make_plan(
            self.current_tree,
            self.target_tree,
            found.live,
            found.among,
            protected=found.protected,
            guests=found.guests,
            policy=self.options.policy,
            halfway=halfway[1] if halfway else None,
            pending=journal[1] if journal else frozenset(),
        )

    def apply(self, plan: Plan) -> str:
        """Stage, verify, apply and verify again. Returns where copies of the node's own files are, if any."""
        name = self.target.digest.removeprefix("sha256:")[:16]
        state = self._stage(plan, name)
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        steps = [letter + facts.on_node(path) for letter, path in operations(plan)]
        self.connection.call("apply", name, stamp, items=join([f"t{self.target.digest}", *steps]))
        live = facts.look(self.connection, [change.path for change in plan.changes])
        for change in plan.changes:
            self._verify(live.get(change.path), change.target, change.path, "after it was applied")
        return f"{state}/backup/{stamp}" if any(change.drifted and change.live for change in plan.changes) else ""

    def _stage(self, plan: Plan, name: str) -> str:
        entries = staged(plan)
        needed = sum({entry.link or entry.path: entry.size for entry in entries}.values())
        if needed > self.inspection.free:
            raise NoSpace(
                f"{self.node} has {self.inspection.free} bytes free and needs {needed}",
                "reboot it into the new version, or free memory there",
            )
        state = self.connection.call("stage", name).decode(errors="replace").strip()
        if state not in facts.STATE:
            raise TrustError(f"{self.node} named {state[:80]!r} as the place for its files")
        if not entries:
            return state
        stage = f"{state}/stage-{name}"
        self.connection.send(self.views.of(self.target), [facts.on_node(entry.path) for entry in entries], stage)
        found = facts.look(self.connection, [entry.path for entry in entries], root=stage)
        for entry in entries:
            self._verify(found.get(entry.path), entry, entry.path, "when it arrived")
        return state

    def _verify(self, found: Entry | None, wanted: Entry | None, path: str, when: str) -> None:
        wrong = differences(found, wanted)
        if wrong:
            raise TrustError(
                f"{self.node}: {path!r} was not what it should be {when}: {', '.join(wrong)}",
                "run it again; the node still says that it runs the old version",
            )

    def finish(self, *, reload: bool) -> None:
        """Say on the node what it runs now."""
        said = self.inspection.provenance
        record = dict(said.record)
        record |= {
            "version": self.target.config.version,
            "manifest": self.target.digest,
            "tree": self.target.config.tree,
        }
        record |= {"livesynced": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), "base": said.base or said.manifest}
        if said.manifest != self.target.digest:
            record["previous"] = said.manifest
        data = json.dumps(record, indent=1).encode() + b"\n"
        self.connection.call("finish", "reload" if reload else "", items=data)
