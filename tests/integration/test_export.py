"""The commands that move capsules, and a second opinion on the file they make."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.capsules import make_capsule
from tests.support.program import VNFS
from tests.support.registry import running_registry
from vnfsbuild.host.run import run
from vnfsbuild.store.capsules import Store
from vnfsbuild.store.cas import hash_file

ROOT = Path(__file__).parents[2]


def vnfs(store: Store, *words: object, code: int = 0, stdin: bytes | None = None) -> Any:
    """Run the real program and return its JSON answer."""
    argv = [*VNFS, "--store", str(store.root)]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    words = (*words, "--json", "--progress", "none")
    done = subprocess.run([*argv, *map(str, words)], check=False, input=stdin, capture_output=True, env=environ)
    assert done.returncode == code, done.stderr.decode()
    return json.loads(done.stdout) if done.stdout else None


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "store")
    first = make_capsule(made)
    make_capsule(made, files={"etc/motd": b"changed\n", "etc/hostname": None}, parent=first)
    return made


def test_export_and_import_carry_the_digest_to_another_store(store: Store, tmp_path: Path) -> None:
    capsule = store.get("demo:2")
    out = tmp_path / "out"
    out.mkdir()
    said = vnfs(store, "export", "demo", out)
    assert said["file"] == str(out / "demo-2.vnfs")
    assert said["bytes"] == (out / "demo-2.vnfs").stat().st_size
    target = Store(tmp_path / "target")
    assert vnfs(target, "import", out / "demo-2.vnfs") == {
        "reference": "demo:2",
        "digest": capsule.digest,
        "tree": capsule.config.tree,
        "size": capsule.size,
    }
    third = Store(tmp_path / "third")
    data = (out / "demo-2.vnfs").read_bytes()
    assert vnfs(third, "import", "-", stdin=data)["digest"] == capsule.digest
    assert vnfs(target, "verify") == {"ok": True, "problems": []}
    assert vnfs(store, "export", "demo", out / "demo-2.vnfs", code=1)["error"]["ref"] == "conflict"
    assert vnfs(target, "import", ROOT / "Makefile", code=1)["error"]["ref"] == "trust"


def test_skopeo_and_tar_read_the_file_as_what_it_is(store: Store, tmp_path: Path) -> None:
    capsule = store.get("demo:2")
    path = tmp_path / "demo.vnfs"
    vnfs(store, "export", "demo:2", path)
    raw = run(["skopeo", "inspect", "--raw", f"oci-archive:{path}"]).output
    assert f"sha256:{hashlib.sha256(raw).hexdigest()}" == capsule.digest
    run(["skopeo", "--insecure-policy", "copy", f"oci-archive:{path}:demo:2", f"oci:{tmp_path}/copy:2"])
    blobs = tmp_path / "copy/blobs/sha256"
    assert all(hash_file(blobs / blob.hex) == blob for blob in (capsule.manifest_blob, *capsule.blobs))
    listing = run(["tar", "-tvf", path]).text.splitlines()
    assert len(listing) == 3 + len(set(capsule.blobs))
    assert all(line.startswith("-rw-r--r-- 0/0") for line in listing)


def test_push_and_pull_report_what_moved_and_what_was_there(store: Store, tmp_path: Path) -> None:
    target = Store(tmp_path / "target")
    with running_registry(tmp_path / "registry") as server:
        first = vnfs(store, "push", "demo:1", f"{server.host}/demo")
        second = vnfs(store, "push", "demo", f"{server.host}/demo")
        third = vnfs(store, "push", "demo", f"{server.host}/demo")
        pulled = vnfs(target, "pull", f"{server.host}/demo")
        missing = vnfs(target, "pull", f"{server.host}/nothing", code=1)
    assert set(first) == {"reference", "digest", "tree", "size", "moved_bytes", "moved_blobs", "skipped_blobs"}
    assert (first["moved_blobs"], first["skipped_blobs"]) == (6, 0)
    assert (second["moved_blobs"], second["skipped_blobs"]) == (3, 4)
    assert (third["moved_blobs"], third["skipped_blobs"], third["moved_bytes"]) == (0, 7, 0)
    assert (pulled["reference"], pulled["digest"]) == ("demo:2", store.get("demo:2").digest)
    assert missing["error"]["ref"] == "not-found"
    assert vnfs(target, "pull", "demo", code=2)["error"]["ref"] == "usage"


def test_an_import_interrupted_by_ctrl_c_leaves_nothing(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "demo.vnfs"
    vnfs(store, "export", "demo:2", path)
    data = path.read_bytes()
    target = Store(tmp_path / "target")
    argv = [*VNFS, "--store", str(target.root)]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [*argv, "import", "-"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environ
    ) as process:
        assert process.stdin is not None
        process.stdin.write(data[:-2048])
        process.stdin.flush()
        deadline = time.monotonic() + 30
        while len(list(target.blobs.all())) < 5:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    left = {item.name for item in target.root.rglob("*") if item.is_file()}
    assert left <= {"lock"}


def test_an_import_into_a_store_with_a_damaged_index_moves_nothing(store: Store, tmp_path: Path) -> None:
    vnfs(store, "export", "demo", tmp_path / "file.vnfs")
    target = Store(tmp_path / "target")
    target.root.mkdir()
    (target.root / "index.json").write_text("{")
    said = vnfs(target, "import", tmp_path / "file.vnfs", code=1)
    assert "index.json is damaged" in said["error"]["message"]
    assert [path.name for path in target.root.iterdir()] == ["index.json"]
