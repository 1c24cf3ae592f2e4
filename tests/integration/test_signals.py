"""However a command is asked to end, it cleans up first, and answers with the signal."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.capsules import make_capsule
from tests.support.program import VNFS
from tests.support.trees import publish, small_tree
from vnfsbuild.deliver.edit import mounts
from vnfsbuild.deliver.transfer.export import write_vnfs
from vnfsbuild.host.mount import mountpoints
from vnfsbuild.progress import Silent
from vnfsbuild.store.capsules import Store

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def _start(store: Store, *words: str) -> subprocess.Popen[bytes]:
    env = os.environ | {"VNFS_STORE": str(store.root)}
    env |= {"VNFS_WORK": str(store.root.parent / "work"), "VNFS_CACHE": str(store.root.parent / "cache")}
    argv = [*VNFS, *words]
    return subprocess.Popen(argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def _wait_for(condition: object) -> None:
    assert callable(condition)
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("number", SIGNALS)
def test_an_import_that_is_ended_takes_back_what_came(number: signal.Signals, tmp_path: Path) -> None:
    source, target = Store(tmp_path / "source"), Store(tmp_path / "target")
    capsule = make_capsule(source)
    file = tmp_path / "file.vnfs"
    write_vnfs(source, capsule, file, force=False, monitor=Silent())
    with _start(target, "import", "-") as process:
        assert process.stdin is not None
        process.stdin.write(file.read_bytes()[: -(20 << 10)])
        process.stdin.flush()
        _wait_for(lambda: any(target.blobs.all()))
        process.send_signal(number)
        process.send_signal(number)
        assert process.wait(20) == 128 + number
        assert process.stderr is not None
        assert b"interrupted; nothing is left half done" in process.stderr.read()
    assert list(target.blobs.all()) == []
    assert list(target.blobs.ingest.iterdir()) == []


@pytest.mark.root
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_shell_that_is_ended_leaves_no_trace(number: signal.Signals, tmp_path: Path) -> None:
    store, work, at = Store(tmp_path / "store"), tmp_path / "work", tmp_path / "at"
    tree = small_tree(tmp_path / "tree")
    (tree / "bin").mkdir(exist_ok=True)
    (tree / "bin/sh").write_bytes(Path("/bin/busybox").read_bytes())
    (tree / "bin/sh").chmod(0o755)
    (tree / "usr/sbin").mkdir(exist_ok=True)
    publish(store, tree)
    mounts.mount(store, work, "tiny", at)
    try:
        with _start(store, "shell", "tiny", "--", "sh", "-c", "echo started; read wait") as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"started\n"
            assert (at / "usr/sbin/policy-rc.d").exists()
            process.send_signal(number)
            assert process.wait(20) == 128 + number
        assert not (at / "usr/sbin/policy-rc.d").exists()
        assert not (at / "etc/resolv.conf").exists() or (tree / "etc/resolv.conf").exists()
    finally:
        mounts.close(work, "tiny")
    assert [point for point in mountpoints() if point.startswith(str(tmp_path))] == []
