"""Manifests, configurations and tables of contents from strangers: what could not have been ours is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard

from tests.support.capsules import make_capsule
from vnfsbuild.deliver.transfer.intake import Offer, admission, check_config, enter
from vnfsbuild.errors import TrustError, VnfsError
from vnfsbuild.store.capsules import Store
from vnfsbuild.store.manifest import Capsule, Config, manifest_parts
from vnfsbuild.store.toc import Entry, FileType, Toc

GOOD = Entry("/etc/a", FileType.FILE, mode=0o644, size=1, sha256="a" * 64)


@pytest.fixture
def capsule(tmp_path: Path) -> Capsule:
    return make_capsule(Store(tmp_path / "source"))


@pytest.mark.parametrize(
    "entry",
    [
        replace(GOOD, path="etc/a"),
        replace(GOOD, path="/etc/../../a"),
        replace(GOOD, path="/etc//a"),
        replace(GOOD, path="/etc/."),
        replace(GOOD, path="/etc/a\0b"),
        replace(GOOD, path="/etc/\ud800"),
        replace(GOOD, path=""),
        replace(GOOD, link="../x"),
        replace(GOOD, mode=0o100644),
        replace(GOOD, uid=-1),
        replace(GOOD, size=1.5),  # type: ignore[arg-type]
        replace(GOOD, sha256="../../x"),
        replace(GOOD, sha256=""),
        replace(GOOD, type=FileType.DIRECTORY),
        replace(GOOD, target="/x"),
        Entry("/etc/a", FileType.SYMLINK),
    ],
)
def test_an_entry_that_no_root_could_have_is_refused(entry: Entry) -> None:
    Toc((GOOD,)).check()
    with pytest.raises(TrustError):
        Toc((entry,)).check()


def test_a_table_out_of_order_or_with_a_path_twice_is_refused() -> None:
    other = replace(GOOD, path="/etc/b")
    for entries in ((other, GOOD), (GOOD, GOOD)):
        with pytest.raises(TrustError, match="not in order"):
            Toc(entries).check()


def test_a_table_that_unfolds_to_gigabytes_is_refused_before_it_does() -> None:
    bomb = zstandard.ZstdCompressor(level=1)
    writer = bomb.compressobj()
    data = b"".join([*(writer.compress(bytes(16 << 20)) for _ in range(20)), writer.flush()])
    with pytest.raises(TrustError, match="too large"):
        Toc.load(data)


CONFIGS: dict[str, Callable[[dict[str, Any]], object]] = {
    "version is true": lambda record: record.update(version=True),
    "version is zero": lambda record: record.update(version=0),
    "version is beyond all numbers": lambda record: record.update(version=1 << 40),
    "name climbs": lambda record: record.update(name="../x"),
    "tree is no digest": lambda record: record.update(tree="sha256:../x"),
    "message is a list": lambda record: record.update(message=["x"]),
    "kernel release is a number": lambda record: record["kernel"].update(release=6),
    "a word too many": lambda record: record.update(surprise="x"),
    "a skip that is no path": lambda record: record["state"].update(livesync_skip=[1]),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_configuration_of_other_types_is_refused(capsule: Capsule, case: str) -> None:
    record = json.loads(capsule.config.to_bytes())
    CONFIGS[case](record)
    with pytest.raises(TrustError):
        Config.from_bytes(json.dumps(record).encode())


MANIFESTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "a table of contents beyond reason": lambda doc: doc["layers"][3].update(size=1 << 40),
    "a configuration beyond reason": lambda doc: doc["config"].update(size=1 << 30),
    "a digest that is a path": lambda doc: doc["layers"][0].update(digest="sha256:../../../etc/passwd"),
    "no layers": lambda doc: doc.update(layers=[]),
    "two kernels": lambda doc: doc["layers"].append(doc["layers"][1]),
    "a negative size": lambda doc: doc["layers"][0].update(size=-1),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_manifest_that_asks_too_much_is_refused_before_anything_moves(capsule: Capsule, case: str) -> None:
    document = json.loads(capsule.manifest())
    Offer.examine(capsule.manifest())
    MANIFESTS[case](document)
    with pytest.raises(TrustError):
        Offer.examine(json.dumps(document).encode())


def test_documents_nested_without_end_are_refused() -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    for read in (manifest_parts, Config.from_bytes):
        with pytest.raises(TrustError):
            read(deep)


def test_more_than_the_disk_holds_is_refused_before_anything_moves(capsule: Capsule, tmp_path: Path) -> None:
    document = json.loads(capsule.manifest())
    document["layers"][0]["size"] = 1 << 60
    offer = Offer.examine(json.dumps(document).encode())
    with pytest.raises(VnfsError, match="no room"), admission(Store(tmp_path / "target"), offer, resumable=True):
        raise AssertionError("must not get here")


def carry(offer: Offer, source: Store, target: Store) -> None:
    with admission(target, offer, resumable=True):
        for blob in offer.blobs:
            with source.blobs.open(blob) as stream:
                target.blobs.put(stream, expect=blob)
        check_config(target, offer)
        enter(target, offer)


def test_a_manifest_that_says_the_same_in_other_bytes_is_refused(capsule: Capsule, tmp_path: Path) -> None:
    source, target = Store(tmp_path / "source"), Store(tmp_path / "target")
    carry(Offer.examine(capsule.manifest()), source, Store(tmp_path / "other"))
    with pytest.raises(TrustError, match="form that vnfs writes"):
        carry(Offer.examine(capsule.manifest() + b"\n"), source, target)
    assert list(target.blobs.all()) == []
