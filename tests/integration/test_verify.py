"""`vnfs verify` finds every kind of damage, names it, and changes nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.integration.test_export import vnfs
from tests.support.capsules import FILES, make_capsule
from vnfsbuild.deliver.verify import Problem, verify
from vnfsbuild.errors import NotFound
from vnfsbuild.host.mount import mountpoints
from vnfsbuild.model import Blob, Reference
from vnfsbuild.progress import Silent
from vnfsbuild.store.capsules import Store
from vnfsbuild.store.manifest import Capsule
from vnfsbuild.store.toc import Toc


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "store")
    first = make_capsule(made)
    make_capsule(made, files={"etc/motd": b"changed\n", "etc/hostname": None}, parent=first)
    return made


def check(store: Store, *references: str, deep: bool = False) -> tuple[Problem, ...]:
    wanted = [Reference.parse(text) for text in references]
    return verify(store, wanted, deep=deep, work=store.root / "work", monitor=Silent())


def overwrite(store: Store, blob: Blob, data: bytes) -> None:
    path = store.blobs.path(blob)
    path.chmod(0o644)
    path.write_bytes(data)


def flip(store: Store, blob: Blob) -> None:
    data = bytearray(store.blobs.path(blob).read_bytes())
    data[len(data) // 2] ^= 1
    overwrite(store, blob, bytes(data))


DAMAGE: dict[str, tuple[Callable[[Store, Capsule], object], str, str]] = {
    "layer flipped": (lambda s, c: flip(s, c.layers[1]), "layer 2", "has other content"),
    "kernel short": (lambda s, c: overwrite(s, c.kernel, b"k"), "kernel", "has 1 bytes instead of"),
    "initrd missing": (lambda s, c: s.blobs.remove(c.initrd), "initrd", "is missing"),
    "toc flipped": (lambda s, c: flip(s, c.toc), "table of contents", "has other content"),
    "config flipped": (lambda s, c: flip(s, c.config_blob), "manifest", "is damaged"),
    "manifest missing": (lambda s, c: s.blobs.remove(c.manifest_blob), "manifest", "is not in"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named_by_version_and_part(store: Store, case: str) -> None:
    assert check(store) == ()
    damage, part, says = DAMAGE[case]
    damage(store, store.get("demo:2"))
    found = check(store, "demo:2")
    assert [(problem.reference, problem.part) for problem in found] == [("demo:2", part)]
    assert says in found[0].message
    shared = part in {"kernel", "initrd"}
    assert bool(check(store, "demo:1")) == shared
    assert vnfs(store, "verify", code=3)["ok"] is False


def test_a_damaged_index_is_a_problem_and_no_crash(store: Store) -> None:
    (store.root / "index.json").write_text("{")
    assert [problem.part for problem in check(store)] == ["index.json"]


def test_an_index_that_calls_a_version_by_another_name_is_named(store: Store) -> None:
    index = json.loads((store.root / "index.json").read_text())
    for item in index["manifests"]:
        item["annotations"]["org.opencontainers.image.ref.name"] += "0"
    (store.root / "index.json").write_text(json.dumps(index))
    assert [(problem.reference, problem.part) for problem in check(store)] == [
        ("demo:10", "index.json"),
        ("demo:20", "index.json"),
    ]


def test_what_does_not_exist_is_not_found(store: Store) -> None:
    for reference in ("other", "demo:9"):
        with pytest.raises(NotFound):
            check(store, reference)


@pytest.mark.root
def test_deep_compares_every_path_with_the_mounted_layers_and_unmounts_them(store: Store) -> None:
    assert check(store, deep=True) == ()
    honest = store.get("demo:2")
    toc = store.toc(honest)
    entries = [
        replace(entry, mode=0o4755) if entry.path == "/usr/bin/hello"
        else replace(entry, sha256="0" * 64) if entry.path == "/etc/motd"
        else entry
        for entry in toc.entries
    ]  # fmt: skip
    lying = Toc.of(entries)
    store.publish(
        replace(honest.config, tree=lying.digest),
        layers=honest.layers,
        kernel=honest.kernel,
        initrd=honest.initrd,
        toc=store.blobs.put_bytes(lying.dump()),
        sbom=honest.sbom,
    )
    assert check(store, "demo:3") == ()
    assert check(store, deep=True) == (
        Problem("demo:3", "tree", "/etc/motd: sha256 changed"),
        Problem("demo:3", "tree", "/usr/bin/hello: mode changed"),
    )
    assert [point for point in mountpoints() if point.startswith(str(store.root.parent))] == []
    assert not any((store.root / "work").iterdir())


@pytest.mark.root
def test_deep_without_root_says_so(store: Store) -> None:
    for path in (store.root, *store.root.parents):
        if path.stat().st_uid == 0 and path != Path("/") and str(path).startswith("/tmp/pytest"):
            path.chmod(0o755)
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        try:
            check(store, deep=True)
        except BaseException as error:
            os._exit(7 if type(error).__name__ == "NotRoot" else 8)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_plain_capsule_made_for_tests_is_itself_sound(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    capsule = make_capsule(store, files={**FILES, "a/b/c/deep": b"1"})
    assert (capsule.reference, check(store)) == ("demo:1", ())
