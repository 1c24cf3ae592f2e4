"""Checks that versions in a store are what their digests say. Reads everything, believes and changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vnfsbuild.errors import NotFound, TrustError, UsageError
from vnfsbuild.host import mount
from vnfsbuild.host.fs import work_directory
from vnfsbuild.host.user import require_root
from vnfsbuild.model import Blob, Reference
from vnfsbuild.progress import Monitor, Step
from vnfsbuild.store.capsules import Store
from vnfsbuild.store.cas import hash_file
from vnfsbuild.store.manifest import Capsule
from vnfsbuild.store.toc import losses, scan


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as it should be: in which version, which part of it (a path of its tree included), and
    what is wrong with it."""

    reference: str
    part: str
    message: str


def verify(
    store: Store, references: Sequence[Reference], *, deep: bool, work: Path, monitor: Monitor
) -> tuple[Problem, ...]:
    """Everything that is wrong with the given versions, or with all of the store when none is given.

    Checked are: that the index leads to manifests in canonical form, that every blob is there with its size and
    sha256, and that the table of contents is the tree the configuration promises. `deep` mounts the layers read-only
    below `work` and compares every path and byte of them with the table of contents; it needs root. Raises NotFound
    when a given reference means nothing, NotRoot.
    """
    if deep:
        require_root("mounting the layers of a capsule", "vnfs verify without --deep checks all digests")
    problems: list[Problem] = []
    try:
        wanted = list(references) or list(_everything(store))
    except TrustError as error:
        return (Problem("", "index.json", error.message),)
    capsules = _load(store, wanted, problems)
    sizes = {blob: blob.size for capsule in capsules for blob in capsule.blobs}
    with monitor.step("verify blobs", total=sum(sizes.values()), unit="bytes") as step:
        states: dict[Blob, str] = {}
        for capsule in capsules:
            problems += _check(store, capsule, states, step)
    for capsule in capsules if deep else ():
        if not any(problem.reference == capsule.reference for problem in problems):
            problems += _check_tree(store, capsule, work, monitor)
    return tuple(problems)


def _everything(store: Store) -> Iterator[Reference]:
    """Each name's versions and tags. The tags are read too, because a tag may lead to what no version does."""
    for name in store.names():
        versions, tags = store.versions(name), store.tags(name)
        yield from (Reference(name, version=version) for version in versions)
        yield from (Reference(name, tag=tag) for tag in sorted(tags))


def _load(store: Store, wanted: Sequence[Reference], problems: list[Problem]) -> list[Capsule]:
    """Each version once, in the order asked for; what cannot be read becomes a problem."""
    found: dict[str, Capsule] = {}
    for reference in wanted:
        known = store.versions(reference.name)
        if not known or (reference.version is not None and reference.version not in known):
            store.get(reference)  # says what is missing, and what there is
        try:
            capsule = store.get(reference)
        except (TrustError, NotFound, UsageError) as error:
            problems.append(Problem(str(reference), "manifest", error.message))
            continue
        if capsule.config.name != reference.name or reference.version not in {None, capsule.config.version}:
            said = f"the index says so, but its configuration says {capsule.reference}"
            problems.append(Problem(str(reference), "index.json", said))
        found.setdefault(capsule.digest, capsule)
    return list(found.values())


def _parts(capsule: Capsule) -> Iterator[tuple[str, Blob]]:
    yield "configuration", capsule.config_blob
    for number, blob in enumerate(capsule.layers, start=1):
        yield f"layer {number}", blob
    yield from (("kernel", capsule.kernel), ("initrd", capsule.initrd))
    yield from (("table of contents", capsule.toc), ("SBOM", capsule.sbom))


def _check(store: Store, capsule: Capsule, states: dict[Blob, str], step: Step) -> list[Problem]:
    problems = []
    for part, blob in _parts(capsule):
        if blob not in states:
            states[blob] = _state(store, blob)
            step.advance(blob.size)
        if states[blob]:
            problems.append(Problem(capsule.reference, part, f"{blob.digest} {states[blob]}"))
    if states[capsule.toc]:
        return problems
    try:
        toc = store.toc(capsule)
        toc.check()
        if toc.digest != capsule.config.tree:
            raise TrustError(f"it is {toc.digest}, but the configuration promises {capsule.config.tree}")
    except TrustError as error:
        problems.append(Problem(capsule.reference, "table of contents", error.message))
    return problems


def _state(store: Store, blob: Blob) -> str:
    """What is wrong with a blob; nothing when it is good."""
    try:
        found = hash_file(store.blobs.path(blob))
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if found.size != blob.size:
        return f"has {found.size} bytes instead of {blob.size}"
    return "" if found == blob else f"has other content: {found.digest}"


def _check_tree(store: Store, capsule: Capsule, work: Path, monitor: Monitor) -> list[Problem]:
    toc = store.toc(capsule)
    with (
        monitor.step(f"verify tree of {capsule.reference}", total=toc.size, unit="bytes") as step,
        work_directory(work, "verify") as directory,
        mount.layers(store.layer_paths(capsule), directory) as root,
    ):
        got = scan(root, advance=step.advance)
    if got.digest == toc.digest:
        return []
    lines = losses(toc, got) or ("the order of entries differs",)
    return [Problem(capsule.reference, "tree", line) for line in lines]
