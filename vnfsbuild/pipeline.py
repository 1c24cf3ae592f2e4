"""From a recipe to a published capsule. The only module that knows the order of the build's steps."""

from __future__ import annotations

import contextlib
import email.utils
import errno
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from vnfsbuild import family, hooks, lockfile, recipe
from vnfsbuild.errors import HostError, LockStale, NotFound, RecipeError, ResolveError, UsageError, VnfsError
from vnfsbuild.family import Family
from vnfsbuild.fetch import Downloader
from vnfsbuild.format import squashfs
from vnfsbuild.host import fs, mount
from vnfsbuild.host.run import run
from vnfsbuild.host.user import require_root
from vnfsbuild.hybrid import initrd, policy
from vnfsbuild.lockfile import Lock
from vnfsbuild.model import Blob
from vnfsbuild.progress import Monitor
from vnfsbuild.recipe import Phase, Recipe
from vnfsbuild.store import sbom, toc
from vnfsbuild.store.capsules import Store
from vnfsbuild.store.cas import digest_of, hash_file
from vnfsbuild.store.manifest import Capsule, Config, Kernel, State

# What a build holds in memory at its peak, as a multiple of the compressed packages: the root, and those packages that
# are uncompressed and not yet unpacked (measured: 8 to 9 on Debian).
_MEMORY_FACTOR = 10
_MEMORY_SPARE = 2 << 30

WITHOUT_ROOT = (
    "run it with sudo; without root these work: lock, list, show, history, diff, verify, export, import, push, pull, "
    "serve, boot, status"
)


@dataclass(frozen=True, slots=True)
class Tools:
    """What a build is given: where it keeps things and what the site says. `data` maps recipes, hooks and capsules to
    the directories that come with vnfs; `mirror` overrides the recipe's."""

    store: Store
    cache: Path
    work: Path
    mirrors: Mapping[str, str]
    data: Callable[[str], Path]
    monitor: Monitor
    mirror: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What a build made. `fresh` is false when the newest version
    already was exactly this, and nothing was published; `losses` names what the layer format could not hold."""

    capsule: Capsule
    fresh: bool
    losses: tuple[str, ...]


def load(path: Path, tools: Tools) -> Recipe:
    """Read a recipe; what it extends is also looked for among the recipes that come with vnfs."""
    wanted = recipe.load(path, search=[tools.data("recipes")])
    try:
        family.release(wanted.distro.id, wanted.distro.suite)
    except UsageError as error:
        raise RecipeError(f"{wanted.path}: distro: {error.message}", error.hint) from error
    return replace(wanted, distro=replace(wanted.distro, mirror=tools.mirror)) if tools.mirror else wanted


def lock(wanted: Recipe, tools: Tools, *, update: bool = False, locked: bool = False, must_write: bool = True) -> Lock:
    """The lock of a recipe: the one at `lock_path` when it still fits, else resolved anew and written there.

    `update` resolves in any case. With `locked` a missing or stale lock raises LockStale. A new lock that
    cannot be written raises HostError, or with `must_write` false is only noted.
    """
    path = lock_path(wanted, tools)
    try:
        held = None if update else lockfile.read(path)
    except RecipeError as error:
        if locked:
            raise
        tools.monitor.note(f"{error.message}; it is made anew")
        held = None
    if held and held.inputs == wanted.inputs:
        return held
    if locked:
        state = "does not fit the recipe any more" if held else "is missing"
        raise LockStale(f"the lock {path} {state}", f"vnfs lock {wanted.path}")
    with tools.monitor.step("resolve"):
        try:
            fresh = family.get(wanted.distro.id).resolve(
                wanted, fetcher=Downloader(tools.cache), mirrors=tools.mirrors, monitor=tools.monitor
            )
        except ResolveError as error:
            raise ResolveError(f"{wanted.path}: {error.message}", error.hint) from error
    try:
        fs.atomic_write(fs.make_directory(path.parent) / path.name, lockfile.dump(fresh).encode())
    except OSError as error:
        if error.errno not in {errno.EACCES, errno.EPERM, errno.EROFS}:
            raise
        if must_write:
            raise HostError(
                f"cannot write the lock {path}: {error.strerror}", "copy the recipe to a directory where you may write"
            ) from error
        tools.monitor.note(f"the lock {path} cannot be written ({error.strerror}); it holds for this run")
    return fresh


def lock_path(wanted: Recipe, tools: Tools) -> Path:
    """Where the lock of a recipe lies: beside it, or in the store where the recipe was installed with vnfs (nothing is
    written among a program's own files)."""
    beside = lockfile.path_for(wanted.path)
    if beside.resolve().is_relative_to(Path(__file__).parent):
        return tools.store.root / "locks" / beside.name
    return beside


def build(
    path: Path, tools: Tools, *, locked: bool = False, tag: str | None = None, keep_failed: Path | None = None
) -> Report:
    """Compile one recipe into the next version of its capsule.

    Everything happens in scratch space of its own, but that the layer is written where it will stay; no version appears
    before the last step. With `keep_failed` the root of a failed build is copied to that directory before the scratch
    space goes.
    """
    require_root("vnfs build", WITHOUT_ROOT)
    wanted = load(path, tools)
    with fs.work_directory(tools.work, "build") as work:
        scratch = fs.make_directory(work / "hooks")
        try:
            profile = policy.profile(wanted.state.profile, tools.data("capsules"))
        except NotFound as error:
            raise RecipeError(f"{wanted.path}: state.profile: {error.message}", error.hint) from error
        found = hooks.find(wanted.hooks, recipe=wanted.path, search=[tools.data("hooks")], scratch=scratch)
        held = lock(wanted, tools, locked=locked, must_write=False)
        with _space(work, held, tools.monitor) as space, fs.space_errors(space):
            root = fs.make_directory(space / "root")
            try:
                kin = family.get(wanted.distro.id)
                _make_root(wanted, held, found, profile, root, space, kin, tools)
                packed = _pack(wanted, held, root, space, tools)
                contents = sbom.to_bytes(kin.inventory(root), family=kin.name, distro=held.distro)
                with tools.monitor.step("publish"):
                    return _publish(wanted, held, profile, packed, contents, tools, tag)
            except BaseException:
                if keep_failed:
                    _keep(root, keep_failed, tools.monitor)
                raise


@contextlib.contextmanager
def _space(work: Path, held: Lock, monitor: Monitor) -> Iterator[Path]:
    """Memory where it fits, else the disk."""
    place = fs.make_directory(work / "space")
    need = _MEMORY_FACTOR * sum(package.size for package in held.packages) + (64 << 20)
    if need + _MEMORY_SPARE < fs.available_memory():
        with mount.tmpfs(place, size=need + _MEMORY_SPARE):
            yield place
    else:
        if fs.free_bytes(place) < need:
            raise VnfsError(
                f"the build needs about {need >> 20} MiB, and {place} has {fs.free_bytes(place) >> 20} MiB",
                "set VNFS_WORK to a place with more room",
            )
        monitor.note("too little memory for the build: it uses the disk, and takes longer")
        yield place


def _make_root(
    wanted: Recipe,
    held: Lock,
    found: tuple[hooks.Found, ...],
    profile: policy.Profile,
    root: Path,
    space: Path,
    kin: Family,
    tools: Tools,
) -> None:
    def phase(which: Phase) -> None:
        count = sum(item.hook.phase is which for item in found)
        if count:
            with tools.monitor.step(f"{which} hooks", total=count, unit="hooks") as step:
                hooks.run_phase(found, which, root, recipe=wanted.path, step=step)

    packages = fs.make_directory(space / "packages")
    with kin.collect(held, packages, download=Downloader(tools.cache).many, monitor=tools.monitor) as supply:
        with tools.monitor.step("bootstrap"):
            kin.bootstrap(root, supply)
        phase(Phase.PRE)
        kin.install(root, supply, requested=wanted.packages, scratch=space, monitor=tools.monitor)
    fs.remove_tree(packages)
    with tools.monitor.step("hybridize"):
        policy.hybridize(root, profile)
        for tree in wanted.files:
            policy.lay_over(root, tree)
    phase(Phase.POST)
    with tools.monitor.step("scrub"):
        kin.scrub(root)
    phase(Phase.PACK)


@dataclass(frozen=True, slots=True)
class _Packed:
    """What the root became, as blobs of the store; `tree` is the digest of what a node sees."""

    tree: str
    layer: Blob
    kernel: Blob
    initrd: Blob
    toc: Blob
    release: str
    losses: tuple[str, ...]


def _pack(wanted: Recipe, held: Lock, root: Path, space: Path, tools: Tools) -> _Packed:
    epoch = _epoch(held)
    losses = tuple(f"{path}: POSIX ACL" for path in policy.normalize(root, epoch))
    release, kernel = initrd.kernel(root)
    ramdisk = space / "initrd"
    helper = held.tools[0]
    boot_tools = Downloader(tools.cache).file(helper.url, blob=helper.blob)
    # The layer is written where it will stay: it is the one large thing that need not pass through memory.
    ingest = fs.make_directory(tools.store.blobs.ingest)
    with fs.work_directory(ingest, "layer") as place:
        layer = place / "layer.squashfs"
        with tools.monitor.step("pack"), ThreadPoolExecutor(2) as pool:
            scanning = pool.submit(toc.scan, root)
            composing = pool.submit(
                initrd.compose,
                root,
                ramdisk,
                release=release,
                tools=boot_tools,
                extra_modules=wanted.boot.modules,
                epoch=epoch,
            )
            squashfs.pack_tree(root, layer, epoch=epoch)
            tree = scanning.result()
            composing.result()
        size = layer.stat().st_size
        if wanted.budget is not None and size > wanted.budget:
            raise VnfsError(
                f"{wanted.name} is {size >> 20} MiB packed, and its budget is {wanted.budget >> 20} MiB",
                "the largest files: " + ", ".join(f"{item.path} ({item.size >> 20} MiB)" for item in _largest(tree)),
            )
        check = fs.make_directory(space / "check")
        with tools.monitor.step("check"), ThreadPoolExecutor(1) as pool, mount.layers([layer], check) as view:
            # Beside the check, because to make a blob durable is to wait for the disk. Not before the layer is mounted:
            # storing it takes its name away.
            storing = pool.submit(
                lambda: (tools.store.blobs.adopt(layer), _take(tools.store, kernel), _take(tools.store, ramdisk))
            )
            # What the layer does not hold of the tree: the packed metadata read back through the kernel.
            packed = toc.Toc.of(toc.read_entry(view, path, info) for path, info in fs.walk(view))
            losses += toc.losses(tree, packed)
            canonical = tree.canonical()
            blobs = (*storing.result(), tools.store.blobs.put_bytes(toc.Toc.pack(canonical)))
    return _Packed(digest_of(canonical), *blobs, release, losses)


def _largest(tree: toc.Toc) -> list[toc.Entry]:
    return sorted(tree.entries, key=lambda entry: -entry.size)[:5]


def _publish(
    wanted: Recipe,
    held: Lock,
    profile: policy.Profile,
    packed: _Packed,
    sbom_bytes: bytes,
    tools: Tools,
    tag: str | None,
) -> Report:
    """Put everything into the store, and name it, unless the newest version is exactly this already."""
    store = tools.store
    newest = store.get(wanted.name) if store.versions(wanted.name) else None
    config = Config(
        name=wanted.name,
        version=0,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        tree=packed.tree,
        family=family.get(wanted.distro.id).name,
        distro=held.distro,
        suite=held.suite,
        architecture=held.arch,
        kernel=Kernel(packed.release, wanted.boot.cmdline),
        state=State(wanted.state.mode, tuple(dict.fromkeys((*profile.livesync_skip, *wanted.state.livesync_skip)))),
        message=f"built from {wanted.path.name}",
        parent=newest.digest if newest else "",
        recipe=wanted.digest,
        lock=held.digest,
    )
    if (
        newest
        and (newest.kernel, newest.initrd) == (packed.kernel, packed.initrd)
        and _says_the_same(newest.config, config)
    ):
        if tag:
            store.tag(newest, tag)
        return Report(newest, fresh=False, losses=packed.losses)
    capsule = store.publish(
        config,
        layers=[packed.layer],
        kernel=packed.kernel,
        initrd=packed.initrd,
        toc=packed.toc,
        sbom=store.blobs.put_bytes(sbom_bytes),
        tag=tag,
    )
    return Report(capsule, fresh=True, losses=packed.losses)


def _take(store: Store, path: Path) -> Blob:
    blob = hash_file(path)
    if store.blobs.has(blob):
        return blob
    with open(path, "rb") as stream:
        return store.blobs.put(stream, expect=blob)


def _says_the_same(old: Config, new: Config) -> bool:
    return replace(old, version=0, created="", parent="", message="") == replace(new, created="", parent="", message="")


def _epoch(held: Lock) -> int:
    """The time that the root's newest files get: the date of the newest Release it was made from."""
    dates = [email.utils.parsedate_to_datetime(repo.date) for repo in held.repositories if repo.date]
    return max((int(date.timestamp()) for date in dates), default=0)


def _keep(root: Path, place: Path, monitor: Monitor) -> None:
    """Copy the root of a failed build to where the user wants to look at it."""
    if not root.is_dir() or not any(root.iterdir()):
        return
    fs.make_directory(place)
    run(["cp", "-a", "--reflink=auto", f"{root}/.", place], what=f"keeping the root in {place}")
    monitor.note(f"the root as the failure left it is in {place}; to go inside: chroot {place} /bin/sh")
