"""The .vnfs file: one form, complete or not there, and nothing but a capsule gets in through it."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.capsules import make_capsule
from vnfsbuild.deliver.transfer.export import default_name, write_vnfs
from vnfsbuild.deliver.transfer.importer import read_vnfs
from vnfsbuild.deliver.transfer.layout import file_size
from vnfsbuild.errors import Conflict, NotFound, TrustError, VnfsError
from vnfsbuild.progress import Silent
from vnfsbuild.store.capsules import Store
from vnfsbuild.store.manifest import Capsule


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("source"))
    first = make_capsule(store)
    make_capsule(store, files={"etc/motd": b"changed\n", "usr/bin/hello": None}, parent=first)
    return store


@pytest.fixture(scope="module")
def packed(source: Store, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("packed") / "demo.vnfs"
    write_vnfs(source, source.get("demo"), path, force=False, monitor=Silent())
    return path.read_bytes()


def take(store: Store, data: bytes, name: str | None = None) -> Capsule:
    return read_vnfs(store, io.BytesIO(data), name=name, monitor=Silent())


def files(store: Store) -> set[str]:
    return {str(path.relative_to(store.root)) for path in store.root.rglob("*") if path.is_file()} - {"lock"}


def test_the_same_version_makes_the_same_bytes_and_says_its_size_beforehand(
    source: Store, packed: bytes, tmp_path: Path
) -> None:
    capsule = source.get("demo")
    old = os.umask(0o077)
    try:
        size = write_vnfs(source, capsule, tmp_path / "again.vnfs", force=False, monitor=Silent())
    finally:
        os.umask(old)
    assert (tmp_path / "again.vnfs").read_bytes() == packed
    assert size == file_size(capsule) == len(packed)
    assert default_name(capsule) == "demo-2.vnfs"


def test_import_gives_the_same_digests_and_twice_changes_nothing(source: Store, packed: bytes, tmp_path: Path) -> None:
    target = Store(tmp_path / "target")
    assert take(target, packed) == source.get("demo:2")
    before = (target.root / "index.json").read_bytes()
    assert take(target, packed) == source.get("demo:2")
    assert (target.root / "index.json").read_bytes() == before
    again = tmp_path / "again.vnfs"
    write_vnfs(target, target.get("demo:2"), again, force=False, monitor=Silent())
    assert again.read_bytes() == packed


def test_another_name_makes_a_version_whose_parent_is_the_original(
    source: Store, packed: bytes, tmp_path: Path
) -> None:
    target = Store(tmp_path / "target")
    renamed = take(target, packed, "other")
    assert (renamed.reference, renamed.config.parent) == ("other:1", source.get("demo:2").digest)
    assert renamed.config.tree == source.get("demo:2").config.tree
    assert take(target, packed, "other") == renamed


def test_a_file_that_exists_is_replaced_only_by_force(source: Store, packed: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.vnfs"
    path.write_bytes(b"mine")
    with pytest.raises(Conflict, match="exists"):
        write_vnfs(source, source.get("demo"), path, force=False, monitor=Silent())
    assert path.read_bytes() == b"mine"
    write_vnfs(source, source.get("demo"), path, force=True, monitor=Silent())
    assert path.read_bytes() == packed
    with pytest.raises(Conflict, match="not a regular file"):
        write_vnfs(source, source.get("demo"), Path("/dev/null"), force=True, monitor=Silent())


def test_a_damaged_or_missing_blob_leaves_no_file(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    capsule = make_capsule(store)
    path = store.blobs.path(capsule.initrd)
    path.chmod(0o644)
    path.write_bytes(b"y" * capsule.initrd.size)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(TrustError, match="damaged in the store"):
        write_vnfs(store, capsule, out / "x.vnfs", force=False, monitor=Silent())
    path.unlink()
    with pytest.raises(NotFound):
        write_vnfs(store, capsule, out / "x.vnfs", force=False, monitor=Silent())
    assert list(out.iterdir()) == []


def test_the_number_of_another_content_is_a_conflict_and_nothing_stays(packed: bytes, tmp_path: Path) -> None:
    target = Store(tmp_path / "target")
    first = make_capsule(target, files={"etc/a": b"1"})
    make_capsule(target, files={"etc/a": b"2"}, parent=first)
    before = files(target)
    with pytest.raises(Conflict, match="demo:2 is here already"):
        take(target, packed)
    assert files(target) == before


Member = tuple[tarfile.TarInfo, bytes]


def members(data: bytes) -> list[Member]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return [(item, archive.extractfile(item).read()) for item in archive]  # type: ignore[union-attr]


def pack(items: list[Member]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for item, data in items:
            archive.addfile(item, io.BytesIO(data))
    return out.getvalue()


def odd(name: str, kind: bytes, target: str = "") -> Member:
    item = tarfile.TarInfo(name)
    item.type, item.linkname = kind, target
    return item, b""


def instead(items: list[Member], kind: bytes, target: str = "") -> list[Member]:
    return [*items[:3], odd(items[3][0].name, kind, target), *items[4:]]


def renamed(items: list[Member], number: int, name: str) -> list[Member]:
    items[number][0].name = name
    return items


def indexed(items: list[Member], change: Callable[[dict[str, object]], object]) -> list[Member]:
    document = json.loads(items[1][1])
    change(document["manifests"][0])
    data = json.dumps(document).encode()
    items[1][0].size = len(data)
    return [items[0], (items[1][0], data), *items[2:]]


HOSTILE: dict[str, Callable[[list[Member]], list[Member]]] = {
    "empty": lambda items: [],
    "a member is missing": lambda items: items[:-1],
    "a member is there twice": lambda items: [*items, items[-1]],
    "order differs": lambda items: [*items[:-2], items[-1], items[-2]],
    "absolute path": lambda items: renamed(items, 3, "/etc/passwd"),
    "path climbs": lambda items: renamed(items, 3, "../../etc/passwd"),
    "path climbs within": lambda items: renamed(items, 3, "blobs/sha256/../../../etc/passwd"),
    "dot before a path": lambda items: renamed(items, 0, "./oci-layout"),
    "symlink for a blob": lambda items: [*items[:3], odd(items[3][0].name, tarfile.SYMTYPE, "/etc/passwd"), *items[4:]],
    "hard link for a blob": lambda items: [
        *items[:3],
        odd(items[3][0].name, tarfile.LNKTYPE, "oci-layout"),
        *items[4:],
    ],
    "device for a blob": lambda items: [*items[:3], odd(items[3][0].name, tarfile.CHRTYPE), *items[4:]],
    "directory first": lambda items: [odd("blobs", tarfile.DIRTYPE), *items],
    "a stray member at the end": lambda items: [*items, odd("extra", tarfile.REGTYPE)],
    "a very long name": lambda items: [odd("x" * 500, tarfile.REGTYPE), *items],
    "blobs swapped": lambda items: [*items[:3], (items[3][0], items[3][1][::-1]), *items[4:]],
    "another reference": lambda items: indexed(
        items, lambda item: item["annotations"].update({"org.opencontainers.image.ref.name": "evil:1"})
    ),  # type: ignore[attr-defined]
    "terminal escapes in the reference": lambda items: indexed(
        items, lambda item: item["annotations"].update({"org.opencontainers.image.ref.name": "\x1b[2J"})
    ),  # type: ignore[attr-defined]
    "a manifest of another size": lambda items: indexed(items, lambda item: item.update({"size": 1 << 60})),
    "a manifest without a digest": lambda items: indexed(items, lambda item: item.update({"digest": "sha256:../../x"})),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused_and_leaves_nothing(packed: bytes, tmp_path: Path, case: str) -> None:
    target = Store(tmp_path / "target")
    data = pack(HOSTILE[case](members(packed)))
    with pytest.raises(VnfsError) as caught:
        take(target, data)
    assert files(target) == set()
    assert caught.value.hint
    assert "\x1b" not in str(caught.value)


def test_what_gnu_tar_makes_of_the_same_members_is_taken_too(source: Store, packed: bytes, tmp_path: Path) -> None:
    assert take(Store(tmp_path / "target"), pack(members(packed))) == source.get("demo:2")


@pytest.mark.parametrize("part", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_file_cut_off_anywhere_says_so_and_leaves_nothing(packed: bytes, tmp_path: Path, part: float) -> None:
    target = Store(tmp_path / "target")
    with pytest.raises(TrustError, match="cut off"):
        take(target, packed[: int(len(packed) * part)])
    assert files(target) == set()


def test_bytes_after_the_end_are_refused(packed: bytes, tmp_path: Path) -> None:
    for more in (b"x", bytes(20000)):
        with pytest.raises(TrustError, match="after its end"):
            take(Store(tmp_path / "target"), packed + more)


def test_blobs_that_were_there_before_stay_after_a_failure(packed: bytes, source: Store, tmp_path: Path) -> None:
    target = Store(tmp_path / "target")
    source_file = tmp_path / "first.vnfs"
    write_vnfs(source, source.get("demo:1"), source_file, force=False, monitor=Silent())
    with open(source_file, "rb") as stream:
        read_vnfs(target, stream, monitor=Silent())
    before = files(target)
    with pytest.raises(TrustError):
        take(target, packed[:-600])
    assert files(target) == before


def flip(data: bytes, at: int, bit: int) -> bytes:
    changed = bytearray(data)
    changed[at % len(data)] ^= 1 << bit
    return bytes(changed)


MUTATION = st.one_of(
    st.tuples(st.just("flip"), st.integers(0, 1 << 40), st.integers(0, 7)),
    st.tuples(st.just("flip early"), st.integers(0, 6000), st.integers(0, 7)),
    st.tuples(st.just("cut"), st.integers(0, 1 << 40), st.just(0)),
    st.tuples(st.just("zero"), st.integers(0, 1 << 40), st.integers(1, 2000)),
    st.tuples(st.just("drop"), st.integers(0, 1 << 40), st.integers(1, 2000)),
    st.tuples(st.just("rename"), st.integers(0, 20), st.integers(0, 20)),
)


def mutated(data: bytes, kind: str, first: int, second: int) -> bytes:
    at = first % len(data)
    if kind.startswith("flip"):
        return flip(data, at, second)
    if kind == "cut":
        return data[:at]
    if kind == "zero":
        return data[:at] + bytes(len(data[at : at + second])) + data[at + second :]
    if kind == "drop":
        return data[:at] + data[at + second :]
    items = members(data)
    names = [item.name for item, _ in items]
    items[first % len(items)][0].name = names[second % len(items)]
    return pack(items)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(MUTATION, min_size=1, max_size=3))
def test_no_change_of_a_file_ever_brings_in_another_capsule(
    packed: bytes, source: Store, tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[str, int, int]]
) -> None:
    data = packed
    for kind, first, second in changes:
        if data and not (kind == "rename" and data != packed):
            data = mutated(data, kind, first, second)
    target = Store(tmp_path_factory.mktemp("target"))
    try:
        capsule = take(target, data)
    except VnfsError:
        assert files(target) == set()
    else:
        assert capsule == source.get("demo:2")
        assert target.names() == ("demo",)
