"""What a store does about blobs that rotted, and about what killed processes left in it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.capsules import make_capsule
from vnfsbuild.deliver.transfer.export import write_vnfs
from vnfsbuild.deliver.transfer.importer import read_vnfs
from vnfsbuild.deliver.verify import verify
from vnfsbuild.model import Blob
from vnfsbuild.progress import Silent
from vnfsbuild.store.capsules import Store
from vnfsbuild.store.manifest import Capsule


def _rot(store: Store, blob: Blob) -> None:
    """Another content of the same size."""
    path = store.blobs.path(blob)
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _parts(capsule: Capsule) -> dict[str, Blob]:
    names = ("config", "layer", "kernel", "initrd", "toc", "sbom")
    return {"manifest": capsule.manifest_blob, **dict(zip(names, capsule.blobs, strict=True))}


@pytest.mark.parametrize("part", ["manifest", "config", "layer", "kernel", "initrd", "toc", "sbom"])
def test_importing_a_version_again_mends_what_rotted_of_it(part: str, tmp_path: Path) -> None:
    store, file = Store(tmp_path / "store"), tmp_path / "file.vnfs"
    capsule = make_capsule(store)
    write_vnfs(store, capsule, file, force=False, monitor=Silent())
    _rot(store, _parts(capsule)[part])
    assert verify(store, (), deep=False, work=tmp_path, monitor=Silent())
    with open(file, "rb") as source:
        assert read_vnfs(store, source, monitor=Silent()) == capsule
    assert verify(store, (), deep=False, work=tmp_path, monitor=Silent()) == ()


def test_what_a_killed_process_left_on_its_way_in_goes_with_the_next_blob(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    program = (
        "import sys, os, signal; from pathlib import Path; from vnfsbuild.store.capsules import Store\n"
        "with Store(Path(sys.argv[1])).blobs.receive() as incoming:\n"
        "    incoming.write(bytes(1 << 20)); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", program, store.root], check=False).returncode == -signal.SIGKILL
    part = store.blobs.partial(Blob("sha256:" + "0" * 64, 10))
    part.write_bytes(b"half")
    assert len(list(store.blobs.ingest.iterdir())) == 2
    with store.blobs.receive() as living:
        living.write(b"one")
        store.blobs.put_bytes(b"two")
        living.commit()
    assert list(store.blobs.ingest.iterdir()) == [part]
