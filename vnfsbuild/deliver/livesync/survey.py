"""What a node is made of: the versions that the store knows of it, and what is really there where it may differ.

Reads as little of a node as can be: where versions differ, and what was written to it since it booted.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vnfsbuild.deliver.livesync import facts
from vnfsbuild.deliver.livesync.nodes import Node
from vnfsbuild.deliver.livesync.plan import candidates, changed_paths
from vnfsbuild.deliver.livesync.skip import Protection, protection
from vnfsbuild.deliver.livesync.ssh import Connection
from vnfsbuild.errors import NotFound, TrustError
from vnfsbuild.store.capsules import Store
from vnfsbuild.store.manifest import Capsule
from vnfsbuild.store.toc import Entry


class Versions:
    """Versions of the store with their tables of contents, each read once for all nodes."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._known: dict[str, tuple[Capsule, dict[str, Entry]] | None] = {}
        self._changed: dict[tuple[str, str], frozenset[str]] = {}

    def find(self, digest: str) -> tuple[Capsule, dict[str, Entry]] | None:
        """A version by its manifest's digest and its tree, read once; None when it is not here."""
        with self._lock:
            if digest not in self._known:
                capsule = self._store.find_digest(digest)
                self._known[digest] = (capsule, self._store.toc(capsule).by_path()) if capsule else None
            return self._known[digest]

    def changed(self, old: str, new: str) -> frozenset[str]:
        """The paths in which two versions, by digest, differ; none where one is not here."""
        before, after = self.find(old), self.find(new)
        if not before or not after or old == new:
            return frozenset()
        with self._lock:
            if (old, new) not in self._changed:
                self._changed[old, new] = frozenset(changed_paths(before[1], after[1]))
            return self._changed[old, new]

    def get(self, digest: str, what: str) -> tuple[Capsule, dict[str, Entry]]:
        """The same; raises NotFound, which begins with `what` ("NODE runs")."""
        found = self.find(digest)
        if found is None:
            raise NotFound(f"{what}, {digest}, which is not in this store", "pull or import that version first")
        return found


@dataclass(frozen=True, slots=True)
class Survey:
    """`among`: paths that may differ from the target. `live`: what is there. `guests`: protected paths that exist on
    the node, as far as is known."""

    among: frozenset[str]
    live: Mapping[str, Entry]
    protected: Protection
    guests: frozenset[str]


def current_version(inspection: facts.Inspection, versions: Versions, node: Node) -> tuple[Capsule, dict[str, Entry]]:
    """The version a node says it runs. Raises NotFound when it is not in the store, TrustError when what the node says
    does not hold together."""
    said = inspection.provenance
    capsule, tree = versions.get(said.manifest, f"{node} runs {said.capsule}:{said.version}")
    if (capsule.config.name, capsule.config.tree) != (said.capsule, said.tree):
        raise TrustError(
            f"{node} says it runs {said.capsule} with the tree {said.tree}, but {said.manifest} is "
            f"{capsule.reference} with the tree {capsule.config.tree}",
            "look at /run/vnfs/provenance.json on the node, or reboot it",
        )
    return capsule, tree


def survey(
    connection: Connection,
    inspection: facts.Inspection,
    versions: Versions,
    made_of: Iterable[str],
    *,
    target: Capsule,
    skip: tuple[str, ...],
) -> Survey:
    """Look at a node that is made of the versions with the digests `made_of` and of what was written to it. Those
    that are not in the store are passed over; `skip` is for a target without a skip list of its own."""
    protected = protection(target.config.state.livesync_skip or skip, inspection.mounts)
    digests = [digest for digest in dict.fromkeys((*made_of, target.digest)) if digest]
    trees = [found[1] for digest in digests if (found := versions.find(digest))]
    changed = {path for digest in digests for path in versions.changed(digest, target.digest)}
    upper = {path: is_directory for path, is_directory in inspection.upper.items() if not protected(path)}
    names = facts.names(connection, sorted(path for path, is_directory in upper.items() if is_directory))
    among = candidates(changed, trees, upper, names)

    def worth_reading(entry: Entry) -> bool:
        return any(known.size == entry.size for tree in trees if (known := tree.get(entry.path)))

    live = facts.look(connection, {path for path in among if not protected(path)}, hash_when=worth_reading)
    guests = {path for paths in (inspection.upper, *trees) for path in paths if protected(path)}
    return Survey(frozenset(among), live, protected, frozenset(guests | protected.mounts))
