"""The main job with the real recipe: build from the real archive, edit, boot, and update the node while it runs."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.boot import Key, make_key, provenance, ssh
from tests.support.program import VNFS
from vnfsbuild.model import Reference
from vnfsbuild.serve.qemu import Guest, Hardware, booted
from vnfsbuild.store.capsules import Store

pytestmark = [pytest.mark.boot, pytest.mark.root, pytest.mark.network]

PATIENCE = 600.0
RECIPE = Path(__file__).parents[2] / "recipes" / "debian-12-compute.toml"
ASKED = (
    *("systemd-sysv", "dbus", "linux-image-amd64", "openssh-server", "ifupdown", "isc-dhcp-client", "chrony"),
    *("nfs-common", "rsync", "vim-tiny", "munge", "slurmd", "rdma-core", "infiniband-diags", "kmod", "udev"),
    *("iproute2", "less", "autofs", "nis", "krb5-user", "parted", "xfsprogs", "curl"),
)
CAPABILITY = "0100000200200000000000000000000000000000"  # cap_net_raw+ep, revision 2


@dataclass
class Job:
    """A store with compute:1 as built and compute:2 as edited, and how to run vnfs on it."""

    place: Path
    key: Key

    def vnfs(self, *words: str | Path, code: int = 0) -> str:
        env = os.environ | {f"VNFS_{name.upper()}": str(self.place / name) for name in ("store", "cache", "work")}
        argv = [*VNFS, *map(str, words)]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        assert done.returncode == code, f"answered {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def json(self, *words: str | Path, code: int = 0) -> Any:
        return json.loads(self.vnfs(*words, "--json", "--progress", "none", code=code))

    def sync(self, verb: str, node: Guest, *words: str, code: int = 0) -> Any:
        """livesync or status against the booted node."""
        where = [f"root@127.0.0.1:{node.ssh_port}"]
        head = [verb, "compute:2", *where] if verb == "livesync" else [verb, *where]
        known = ["--identity", self.key.private, "--known-hosts", self.place / "known_hosts", "--accept-new"]
        return self.json(*head, *known, *words, code=code)[0]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    place = tmp_path_factory.mktemp("job")
    made = Job(place, make_key(place))
    recipe = place / "compute.toml"
    recipe.write_text(f'name = "compute"\nextends = ["{RECIPE}"]\n')
    made.vnfs("build", recipe)
    made.vnfs("mount", "compute", "--at", place / "mnt")
    try:
        made.vnfs("shell", "compute", "--", "apt-get", "install", "-y", "tree")
        root = place / "mnt"
        (root / "etc/motd").write_text("version 2\n")
        (root / "etc/issue.net").unlink()
        (root / "usr/bin/less").chmod(0o750)
        subprocess.run(["setcap", "cap_net_raw+ep", root / "usr/bin/rsync"], check=True)
        # On the skip list: what this says must never reach a node.
        (root / "etc/hosts").write_text("192.0.2.1 of-the-capsule\n")
        made.vnfs("umount", "compute", "-m", "tree and more")
    finally:
        subprocess.run(["umount", "-l", place / "mnt"], check=False, capture_output=True)
    yield made
    subprocess.run(["rm", "-rf", place], check=True)


@pytest.fixture(scope="module")
def node(job: Job) -> Iterator[Guest]:
    with booted(Store(job.place / "store"), Reference("compute", version=1), hardware=Hardware(),
                ssh_keys=(job.key.public,)) as guest:  # fmt: skip
        guest.wait_login(timeout=PATIENCE)
        guest.wait_ssh(timeout=PATIENCE)
        yield guest


def test_the_recipe_holds_what_a_compute_node_needs_and_every_package_is_from_the_lock(job: Job) -> None:
    shown = job.json("show", "compute:1")
    with open(
        job.place / "store/blobs/sha256" / shown["parts"]["sbom"]["digest"].removeprefix("sha256:"), "rb"
    ) as sbom:
        names = {item["name"] for item in json.load(sbom)["components"]}
    assert set(ASKED) <= names
    assert len(names) == shown["packages"]
    image = job.place / "store/blobs/sha256" / shown["layers"][0]["digest"].removeprefix("sha256:")
    listed = subprocess.run(["unsquashfs", "-cat", image, "etc/default/slurmd"], capture_output=True, check=True).stdout
    assert listed == b'SLURMD_OPTIONS="--conf-server head:6817"\n', "the recipe's hook ran"
    assert job.vnfs("verify", "--deep")


def test_diff_names_exactly_what_was_edited(job: Job) -> None:
    said = job.json("diff", "compute:1", "compute:2")
    assert [(item["name"], item["from"]) for item in said["packages"]] == [("tree", None)]
    assert sorted(item["path"] for item in said["files"]) == [
        "/etc/hosts",
        "/etc/issue.net",
        "/etc/motd",
        "/usr/bin/less",
        "/usr/bin/rsync",
    ]


def test_the_node_says_what_it_runs_and_all_its_services_came_up(job: Job, node: Guest) -> None:
    said = provenance(node.ssh_port, job.key)
    shown = job.json("show", "compute:1")
    assert (said["capsule"], said["version"]) == ("compute", 1)
    assert (said["manifest"], said["tree"]) == (shown["digest"], shown["tree"])
    ssh(node.ssh_port, job.key, "systemctl is-active chrony ssh autofs dbus")
    keys = ssh(node.ssh_port, job.key, "ls /etc/ssh/ssh_host_*_key")
    assert keys.strip() == "/etc/ssh/ssh_host_ed25519_key", "made on the node: the capsule carries none"


def test_a_running_node_goes_from_one_version_to_the_next_and_drift_is_named(job: Job, node: Guest) -> None:
    def on_node(command: str) -> str:
        return ssh(node.ssh_port, job.key, command).strip()

    assert job.sync("status", node)["drift"] == []
    booted_at = on_node("cat /proc/sys/kernel/random/boot_id")
    on_node("echo 127.0.0.1 localhost of-the-node > /etc/hosts")
    plan = job.sync("livesync", node, "--plan")
    changes = {item["path"] for item in plan["changes"]}
    assert {"/etc/motd", "/etc/issue.net", "/usr/bin/less", "/usr/bin/rsync", "/usr/bin/tree"} <= changes
    assert "/etc/hosts" not in changes
    assert "version 2" not in on_node("cat /etc/motd"), "a plan changes nothing"

    assert job.sync("livesync", node)["state"] == "updated"
    assert on_node("tree --version").startswith("tree v")
    assert on_node("cat /etc/motd") == "version 2"
    assert on_node("test -e /etc/issue.net || echo gone") == "gone"
    assert on_node("stat -c '%a %U' /usr/bin/less") == "750 root"
    held = on_node(
        "tar -C / --xattrs --xattrs-include='*' --format=pax -cf - usr/bin/rsync | head -c 2048 | od -An -tx1 -v"
    )
    assert CAPABILITY in held.replace(" ", "").replace("\n", "")
    assert "of-the-node" in on_node("cat /etc/hosts")
    assert on_node("cat /proc/sys/kernel/random/boot_id") == booted_at
    status = job.sync("status", node)
    assert (status["version"], status["drift"]) == (2, [])
    assert job.sync("livesync", node)["state"] == "unchanged", "doing it again changes nothing"

    on_node("echo by hand >> /etc/motd")
    status = job.sync("status", node, code=3)
    assert [item["path"] for item in status["drift"]] == ["/etc/motd"]
