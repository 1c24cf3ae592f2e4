"""list, show, history, diff and shell, as they are typed, on capsules made of real trees."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.program import VNFS
from tests.support.trees import CAPABILITY, EPOCH, publish, small_tree, status
from vnfsbuild.errors import TrustError
from vnfsbuild.format.squashfs import pack_tree, read_files
from vnfsbuild.model import Package
from vnfsbuild.store.capsules import Store

pytestmark = pytest.mark.root


@pytest.fixture
def vnfs(tmp_path: Path) -> Iterator[Path]:
    publish(Store(tmp_path / "store"), small_tree(tmp_path / "tree"))
    yield tmp_path
    run(tmp_path, "close", "tiny", "--yes")


def run(base: Path, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    places = {f"VNFS_{name.upper()}": str(base / name) for name in ("store", "work", "cache")}
    return subprocess.run(
        [*VNFS, *words], env=os.environ | places, capture_output=True, text=True, input=stdin, check=False, timeout=60
    )


def _edit(base: Path) -> None:
    at = base / "at"
    assert run(base, "mount", "tiny", "--at", str(at)).returncode == 0
    (at / "var/lib/dpkg/status").write_bytes(status(Package("base", "1.0", "all"), Package("tree", "2.1", "amd64")))
    (at / "var/lib/dpkg/info/tree.list").write_text("/.\n/bin/tree\n")
    (at / "usr/bin/tree").write_text("tree")
    (at / "usr/bin/tree").chmod(0o4755)
    (at / "etc/motd").write_text("edited")
    (at / "etc/hostname").unlink()
    (at / "etc/conf.d/0").chmod(0o600)
    (at / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nslurm:x:64030:64030::/:/bin/false\n")
    os.setxattr(at / "usr/bin/one", "security.capability", CAPABILITY)
    done = run(base, "umount", "tiny", "-m", "many things", "--json")
    assert json.loads(done.stdout)["reference"] == "tiny:2", done.stderr


def test_diff_names_exactly_what_was_done(vnfs: Path) -> None:
    _edit(vnfs)
    found = json.loads(run(vnfs, "diff", "tiny:1", "tiny:2", "--json").stdout)
    assert found["packages"] == [{"name": "tree", "from": None, "to": "2.1"}]
    linked = ("/usr/bin/one", "/usr/bin/two", "/usr/sbin/three")
    assert {item["path"]: item["what"] for item in found["files"]} == {
        "/etc/conf.d/0": ["mode"],
        "/etc/hostname": ["deleted"],
        "/etc/motd": ["content"],
        "/etc/passwd": ["content"],
        **{path: ["capability"] for path in linked},
    }
    assert found["accounts"] == ["user added: slurm"]
    assert {item["path"] for item in found["privileges"]} == {"/usr/bin/tree", *linked}
    assert found["explained"] == {"package": 1, "books": 2, "time": 3}
    everything = run(vnfs, "diff", "tiny:1", "tiny:2", "--all").stdout
    assert "+ /usr/bin/tree" in everything
    assert run(vnfs, "diff", "tiny:1", "tiny:2", "--exit-code").returncode == 3
    assert run(vnfs, "diff", "tiny:2", "tiny:2", "--exit-code").returncode == 0


def test_list_show_and_history_tell_a_capsule(vnfs: Path) -> None:
    _edit(vnfs)
    (listed,) = json.loads(run(vnfs, "list", "--json").stdout)
    assert (listed["versions"], listed["mounted"]) == ([1, 2], None)
    run(vnfs, "mount", "tiny", "--at", str(vnfs / "at"))
    assert f"tiny:2 at {vnfs / 'at'}" in run(vnfs, "list").stdout
    (vnfs / "work/mounts/tiny/state.json").rename(vnfs / "state")
    (vnfs / "work/mounts/tiny/state.json").write_text("{")
    assert "tiny" in run(vnfs, "list").stdout
    assert "root can see where" in run(vnfs, "list").stdout
    (vnfs / "state").rename(vnfs / "work/mounts/tiny/state.json")
    shown = json.loads(run(vnfs, "show", "tiny", "--json").stdout)
    assert (shown["packages"], len(shown["layers"]), shown["message"]) == (2, 2, "many things")
    assert shown["digest"] in run(vnfs, "show", "tiny:2").stdout
    moved = json.loads(run(vnfs, "export", "tiny", str(vnfs / "tiny.vnfs"), "--json").stdout)
    newest, oldest = json.loads(run(vnfs, "history", "tiny", "--json").stdout)
    keys = ("reference", "digest", "tree", "size")
    for answer in (listed, newest, moved):
        assert [answer[key] for key in keys] == [shown[key] for key in keys]
    assert (newest["version"], newest["parent_reference"], oldest["parent"]) == (2, "tiny:1", "")
    assert newest["delta"] == shown["layers"][1]["size"]
    assert "there is no capsule other" in run(vnfs, "show", "other").stderr


def test_a_shell_runs_commands_and_leaves_no_trace(vnfs: Path) -> None:
    tree = vnfs / "busy"
    for name in ("bin", "etc", "usr/sbin", "var/lib/dpkg", "var/lib/apt/lists", "var/cache/apt", "proc", "sys", "dev"):
        (tree / name).mkdir(parents=True)
    for name in ("run", "tmp", "root"):
        (tree / name).mkdir()
    (tree / "bin/busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (tree / "bin/busybox").chmod(0o755)
    for name in ("sh", "cat", "ls", "tr"):
        (tree / "bin" / name).symlink_to("busybox")
    (tree / "var/lib/dpkg/status").write_bytes(b"")
    publish(Store(vnfs / "store"), tree, "busy")
    run(vnfs, "mount", "busy", "--at", str(vnfs / "at"))
    try:
        assert run(vnfs, "shell", "busy", "--", "sh", "-c", "exit 7").returncode == 7
        assert run(vnfs, "shell", "busy", "--", "tr", "a-z", "A-Z", stdin="piped").stdout == "PIPED"
        assert run(vnfs, "shell", "busy", stdin="echo from standard input").stdout == "from standard input\n"
        policy = run(vnfs, "shell", "busy", "--", "cat", "/usr/sbin/policy-rc.d").stdout
        assert policy.endswith("exit 101\n")
        resolver = run(vnfs, "shell", "busy", "--", "cat", "/etc/resolv.conf").stdout
        assert resolver == Path("/etc/resolv.conf").read_text()
        run(vnfs, "shell", "busy", "--", "sh", "-c", "echo x > /var/lib/apt/lists/some_Packages")
        assert (vnfs / "cache/apt/busy/lists/some_Packages").exists()
        done = json.loads(run(vnfs, "umount", "busy", "--json").stdout)
        assert done["reference"] is None
        assert "is not mounted" in run(vnfs, "shell", "busy", "--", "true").stderr
    finally:
        run(vnfs, "close", "busy", "--yes")


def test_an_image_is_read_without_mounting_and_packs_alike_twice(tmp_path: Path) -> None:
    tree = small_tree(tmp_path / "tree")
    one, two, heard = tmp_path / "one", tmp_path / "two", []
    pack_tree(tree, one, epoch=EPOCH, advance=heard.append)
    pack_tree(tree, two, epoch=EPOCH, threads=1, compressor="zstd", level=3)
    assert one.read_bytes() == two.read_bytes()
    assert sum(heard) > 1 << 20
    odd = os.fsdecode(b"/etc/caf\xe9")
    found = read_files(one, ["/etc/motd", "/etc/none", "/usr/bin/link", "/etc", odd], scratch=tmp_path)
    assert found == {"/etc/motd": b"hello\n", odd: b"latin\n"}
    with pytest.raises(TrustError):
        read_files(one, ["/etc/motd"], scratch=tmp_path, limit=3)
