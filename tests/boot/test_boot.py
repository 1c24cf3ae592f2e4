"""A capsule boots in QEMU on the way a node takes; and one that is damaged does not."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.boot import (
    Key,
    busybox_package,
    flip_byte,
    make_key,
    make_root,
    provenance,
    publish,
    publish_delta,
    ssh,
)
from tests.support.ports import free_port
from tests.support.program import VNFS
from vnfsbuild.errors import VnfsError
from vnfsbuild.model import Reference
from vnfsbuild.serve.qemu import Hardware, booted
from vnfsbuild.store.capsules import Store
from vnfsbuild.store.manifest import Capsule

pytestmark = [pytest.mark.boot, pytest.mark.root, pytest.mark.network]

PATIENCE = 300.0


@dataclass(frozen=True)
class Site:
    store: Store
    capsule: Capsule
    key: Key


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    place = tmp_path_factory.mktemp("boot")
    store = Store(place / "store")
    root = make_root(place / "root")
    base = publish(store, root, tools=busybox_package(place), scratch=place)
    delta = place / "delta"
    (delta / "etc").mkdir(parents=True)
    (delta / "etc/motd").write_text("of the second layer\n")
    os.mknod(delta / "etc/issue", stat.S_IFCHR, 0)  # a whiteout
    capsule = publish_delta(store, base, delta, scratch=place)
    subprocess.run(["rm", "-rf", root], check=True)
    yield Site(store, capsule, make_key(place))
    subprocess.run(["rm", "-rf", place], check=True)


def test_a_node_boots_to_login_answers_ssh_and_says_what_it_runs(site: Site) -> None:
    heard: list[str] = []
    with booted(site.store, Reference("trial"), hardware=Hardware(), ssh_keys=(site.key.public,),
                hear=heard.append) as node:  # fmt: skip
        node.wait_login(timeout=PATIENCE)
        node.wait_ssh(timeout=PATIENCE)
        said = provenance(node.ssh_port, site.key)
        assert said["capsule"] == "trial"
        assert said["version"] == 2
        assert said["manifest"] == site.capsule.digest
        assert said["tree"] == site.capsule.config.tree
        assert said["layers"] == [blob.digest for blob in site.capsule.layers]
        assert said["kernel"] == site.capsule.config.kernel.release
        assert said["node"] == "52:54:00:12:34:56"

        def on_node(command: str) -> str:
            return ssh(node.ssh_port, site.key, command).strip()

        assert on_node("systemctl is-system-running --wait") == "running"
        assert on_node("stat -f -c %T / /run/vnfs/layers/0 /run/vnfs/layers/1 /run/vnfs/rw").split() == [
            "overlayfs", "squashfs", "squashfs", "tmpfs"]  # fmt: skip
        assert on_node("cat /etc/motd") == "of the second layer"
        assert on_node("test -e /etc/issue || echo gone") == "gone"
        assert on_node("stat -c '%a %u' /root/.ssh/authorized_keys") == "600 0"
        assert "nameserver 10.0.2.3" in on_node("cat /etc/resolv.conf")
        assert on_node("ls /sys/class/net | grep -c '^eth'; true") == "0", "udev could give its lasting name"
        assert on_node("touch /usr/share/doc/written && ls /run/vnfs/rw/upper/usr/share/doc") == "written"
        # Both memory file systems are bounded.
        sizes = [int(word) for word in on_node("stat -f -c '%b %S' /run/vnfs/images /run/vnfs/rw").split()]
        layers = sum(blob.size for blob in site.capsule.layers)
        assert layers <= sizes[0] * sizes[1] < layers + 5_000_000
        assert sizes[2] * sizes[3] < 2_000_000_000
    assert any("reports booting: trial:2" in line for line in heard)
    assert node.process.poll() is not None, "the machine ended with its context"


def test_a_layer_with_one_flipped_bit_is_refused_on_the_node_with_the_reason_on_the_console(site: Site) -> None:
    layer = site.capsule.layers[0]
    restore = flip_byte(site.store.blobs.path(layer), layer.size // 2)
    heard: list[str] = []
    try:
        with booted(site.store, Reference("trial"), hardware=Hardware(), hear=heard.append) as node:
            with pytest.raises(VnfsError, match="does not boot"):
                node.wait_login(timeout=PATIENCE)
            node.wait(60)
    finally:
        restore()
    line = next(line for line in node.text().splitlines() if "is damaged" in line)
    assert line.startswith(f"vnfs: layer {layer.digest} is damaged: got sha256:")
    assert line.endswith("; refusing to boot")
    assert "login:" not in node.text()
    assert any("reports failed: layer" in line for line in heard)


def test_a_node_with_too_little_memory_refuses_with_numbers(site: Site) -> None:
    with booted(site.store, Reference("trial"), hardware=Hardware(memory="400M")) as node:
        with pytest.raises(VnfsError, match="too little memory: this node has"):
            node.wait_login(timeout=PATIENCE)
        node.wait(60)
    assert "fetching layer" not in node.text()


def test_a_crash_of_qemu_is_told_from_a_machine_that_ends(site: Site) -> None:
    with booted(site.store, Reference("trial"), hardware=Hardware()) as node:
        node.process.send_signal(signal.SIGSEGV)
        with pytest.raises(VnfsError, match=r"^QEMU ended by SIGSEGV"):
            node.wait_login(timeout=PATIENCE)


def test_the_command_boots_until_login_and_ends_its_machine(site: Site, tmp_path: Path) -> None:
    key = tmp_path / "key.pub"
    key.write_text(site.key.public)
    words = ["--store", site.store.root, "boot", "trial:1", "--ssh-key", key, "--console", tmp_path / "console"]
    done = subprocess.run([*VNFS, *words, "--until", "login", "--json"], capture_output=True, text=True,
                          timeout=PATIENCE * 2, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["reference"] == "trial:1"
    assert b"login:" in (tmp_path / "console").read_bytes()
    assert not machines_with(answer["ssh"].rpartition(":")[2])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_machine_with_the_command(site: Site, tmp_path: Path, number: signal.Signals) -> None:
    port = free_port()
    words = ["--store", site.store.root, "boot", "trial", "--ssh-port", str(port), "--console", tmp_path / "console"]
    process = subprocess.Popen([*VNFS, *words], stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not machines_with(str(port)):
            time.sleep(0.1)
        assert machines_with(str(port))
        process.send_signal(number)
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert b"Traceback" not in errors
    assert not machines_with(str(port))


def machines_with(port: str) -> list[str]:
    """QEMU processes that forward this port."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if "qemu-system" in line.split("\0")[0] and f"127.0.0.1:{port}-" in line:
            found.append(line)
    return found
