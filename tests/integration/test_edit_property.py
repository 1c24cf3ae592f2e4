"""Whatever is done in the mounted view, three roads lead to the same tree: the view itself, the computed table of
contents, and the layers of the version that was published."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.trees import CAPABILITY, EPOCH, publish, small_tree
from vnfsbuild.deliver.edit import mounts
from vnfsbuild.deliver.edit.publish import umount
from vnfsbuild.host.mount import layers
from vnfsbuild.progress import Silent
from vnfsbuild.store.capsules import Store
from vnfsbuild.store.toc import Toc, scan

pytestmark = pytest.mark.root

NAMES = (
    "etc",
    "etc/motd",
    "etc/conf.d",
    "etc/conf.d/0",
    "etc/conf.d/1",
    "etc/conf.d/deep",
    "etc/conf.d/deep/file",
    "etc/.wh.real",
    "etc/.wh.motd",
    "usr/bin/one",
    "usr/bin/two",
    "usr/sbin/three",
    "usr/bin/capable",
    "usr/bin/link",
    "usr/bin",
    "empty",
    "empty/new",
    "empty/new/below",
    "root/fifo",
    "root/null",
    "root/sparse",
    os.fsdecode(b"etc/caf\xe9"),
    os.fsdecode(b"empty/\xff\nline"),
)


def _put(path: Path, content: bytes, size: int = 0) -> None:
    # Opening a pipe for writing would wait for its reader.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK, 0o644)
    with open(descriptor, "wb") as out:
        out.write(content)
        out.truncate(size or len(content))


def _write(path: Path, other: Path) -> None:
    _put(path, b"written " + os.fsencode(other.name))


def _append(path: Path, other: Path) -> None:
    if path.is_file() and not path.is_symlink():
        with open(path, "ab") as out:
            out.write(b"+")


def _touch_nothing(path: Path, other: Path) -> None:
    if path.is_file():
        open(path, "r+b").close()


def _replace(path: Path, other: Path) -> None:
    fresh = path.with_name("fresh")
    fresh.write_bytes(b"replaced")
    fresh.rename(path)


def _remove(path: Path, other: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _recreate(path: Path, other: Path) -> None:
    _remove(path, other)
    path.mkdir()
    (path / "again").write_text("again")


def _socket_free_move(path: Path, other: Path) -> None:
    shutil.move(path, other)


def _sparse(path: Path, other: Path) -> None:
    _put(path, b"x", 3 << 20)


OPERATIONS: dict[str, Callable[[Path, Path], object]] = {
    "write": _write,
    "append": _append,
    "open and write nothing": _touch_nothing,
    "replace": _replace,
    "remove": _remove,
    "recreate": _recreate,
    "move": _socket_free_move,
    "sparse": _sparse,
    "chmod": lambda path, other: path.chmod(0o4711),
    "chown": lambda path, other: os.chown(path, 12, 34, follow_symlinks=False),
    "link": lambda path, other: os.link(path, other, follow_symlinks=False),
    "symlink": lambda path, other: other.symlink_to(path.name),
    "mkdir": lambda path, other: path.mkdir(),
    "time": lambda path, other: os.utime(path, (EPOCH + 5, EPOCH + 5), follow_symlinks=False),
    "capability": lambda path, other: os.setxattr(path, "security.capability", CAPABILITY),
    "attribute": lambda path, other: os.setxattr(path, "trusted.site", b"a\0b", follow_symlinks=False),
    "fifo": lambda path, other: os.mkfifo(path),
    "device": lambda path, other: os.mknod(path, 0o60600, os.makedev(259, 3)),
}
STEP = st.tuples(st.sampled_from(sorted(OPERATIONS)), st.sampled_from(NAMES), st.sampled_from(NAMES))
EDIT = st.lists(STEP, min_size=1, max_size=8)


@dataclass(frozen=True)
class Site:
    store: Store
    work: Path
    at: Path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    base = tmp_path_factory.mktemp("edit")
    store = Store(base / "store")
    publish(store, small_tree(base / "tree"))
    yield Site(store, base / "work", base / "at")
    with suppress(Exception):
        mounts.close(base / "work", "tiny")


def _seen(root: Path) -> Toc:
    return scan(root, threads=1)


def _differences(one: Toc, two: Toc) -> list[str]:
    left, right = set(one.entries), set(two.entries)
    return sorted(f"{entry}" for entry in left ^ right)


def _edit(site: Site, reference: str, steps: list[tuple[str, str, str]]) -> None:
    mounted = mounts.mount(site.store, site.work, reference, site.at)
    try:
        for operation, path, other in steps:
            with suppress(OSError, shutil.Error, ValueError):
                OPERATIONS[operation](mounted.at / path, mounted.at / other)
        view = _seen(mounted.at)
        outcome = umount(site.store, site.work, "tiny", "", Silent())
    except BaseException:
        mounts.close(site.work, "tiny")
        raise
    base = site.store.toc(site.store.get(reference))
    if outcome.capsule is None:
        times = {entry.path: entry.mtime for entry in base.entries}
        calm = Toc(tuple(replace(e, mtime=times[e.path]) if e.type == "dir" else e for e in view.entries))
        assert not _differences(calm, base)
        return
    computed = site.store.toc(outcome.capsule)
    assert not _differences(computed, view)
    scratch = site.work / "verify"
    scratch.mkdir()
    try:
        with layers(site.store.layer_paths(outcome.capsule), scratch) as root:
            assert not _differences(_seen(root), computed)
    finally:
        shutil.rmtree(scratch)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(first=EDIT, second=EDIT)
def test_view_computed_toc_and_published_layers_are_the_same_tree(
    site: Site, first: list[tuple[str, str, str]], second: list[tuple[str, str, str]]
) -> None:
    _edit(site, "tiny:1", first)
    _edit(site, "tiny", second)
