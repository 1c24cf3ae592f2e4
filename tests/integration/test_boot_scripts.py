"""The scripts that run on a node, run here by the same shell: busybox, in a pid namespace of its own."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from importlib import resources
from pathlib import Path

import pytest

from tests.support.http import answering

SCRIPTS = Path(str(resources.files("vnfsbuild.hybrid").joinpath("boot")))
NODE = SCRIPTS.parents[1] / "deliver/livesync/node/livesync.sh"
LAYER = os.urandom(400_000)
DIGEST = f"sha256:{hashlib.sha256(LAYER).hexdigest()}"
PLAN = f"""\
vnfs-plan 1
capsule compute
version 7
manifest sha256:{"a" * 64}
tree sha256:{"b" * 64}
kernel 6.1.0
memory 1000
layer sha256:{"1" * 64} 100
layer sha256:{"2" * 64} 200
end
"""

pytestmark = pytest.mark.root

# What would end the machine says so instead.
SAFE = """
set -u
scripts=$SCRIPTS onfail=halt servers='' plan=sha256:x files='' writable='' bootif='' mac='' interface=''
for part in common network fetch root; do . "$SCRIPTS/$part.sh"; done
say() { echo "SAY $1"; }
die() { echo "DIE $1"; exit 9; }
"""


def shell(tmp_path: Path, script: str, **env: str) -> tuple[int, str]:
    """Run `script` after the parts of the boot have been read."""
    tools = tmp_path / "tools"
    if not tools.exists():
        tools.mkdir()
        subprocess.run(["busybox", "--install", "-s", tools], check=True)
    done = subprocess.run(
        ["/usr/bin/unshare", "--pid", "--fork", "--kill-child", "--mount", str(tools / "sh"), "-c", SAFE + script],
        env={"PATH": str(tools), "SCRIPTS": str(SCRIPTS)} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout


class _Handler(BaseHTTPRequestHandler):
    """Serves LAYER in the manner that the server is told to."""

    manner = "well"
    asked: list[str]

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "")
        self.asked.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        body = LAYER
        if self.manner == "damaged":
            body = LAYER[:-1] + bytes([LAYER[-1] ^ 1])
        elif self.manner == "endless":
            body = LAYER + bytes(50_000_000)
        if self.manner == "absent":
            self.send_error(404)
            return
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(body) - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        if self.manner == "breaks off" and len(self.asked) == 1:
            self.wfile.write(body[start : len(body) // 2])
            return
        with suppress(OSError):
            self.wfile.write(body[start:])

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def server(manner: str) -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []
    handler = type("Handler", (_Handler,), {"manner": manner, "asked": asked})
    with answering(handler) as port:
        yield f"http://127.0.0.1:{port}", asked


def fetch(tmp_path: Path, servers: str) -> tuple[int, str]:
    return shell(
        tmp_path,
        f"servers='{servers}' attempts=2 stall=2\nrandom() {{ echo 0; }}\n"
        f"fetch transfer layer {DIGEST} {tmp_path}/layer {len(LAYER)}\necho FETCHED",
    )


def test_the_scripts_pass_shellcheck() -> None:
    done = subprocess.run(["shellcheck", "-x", "init", "udhcpc.sh", "install.sh"], cwd=SCRIPTS, capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_what_livesync_runs_on_a_node_passes_shellcheck() -> None:
    # SC2016: most of it is commands that a later shell gets.
    done = subprocess.run(["shellcheck", "--shell=sh", "--exclude=SC2016", NODE], capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_layer_is_fetched_and_checked(tmp_path: Path) -> None:
    with server("well") as (url, _):
        assert fetch(tmp_path, url) == (0, "FETCHED\n")
    assert (tmp_path / "layer").read_bytes() == LAYER


def test_a_transfer_that_breaks_off_is_resumed_where_it_broke(tmp_path: Path) -> None:
    with server("breaks off") as (url, asked):
        code, said = fetch(tmp_path, url)
    assert code == 0
    assert "trying again" in said
    assert asked == ["", f"bytes={len(LAYER) // 2}-"]
    assert (tmp_path / "layer").read_bytes() == LAYER


def test_the_next_server_is_asked_when_one_has_nothing(tmp_path: Path) -> None:
    with server("absent") as (poor, _), server("well") as (rich, _):
        assert fetch(tmp_path, f"http://127.0.0.1:1 {poor} {rich}") == (0, "FETCHED\n")


def test_a_damaged_layer_is_refused_at_once_and_named(tmp_path: Path) -> None:
    with server("damaged") as (url, asked):
        code, said = fetch(tmp_path, url)
    bad = hashlib.sha256(LAYER[:-1] + bytes([LAYER[-1] ^ 1])).hexdigest()
    assert (code, said) == (9, f"DIE layer {DIGEST} is damaged: got sha256:{bad}; refusing to boot\n")
    assert len(asked) == 1, "a failure of trust is not retried"


def test_more_bytes_than_promised_are_cut_off(tmp_path: Path) -> None:
    with server("endless") as (url, _):
        code, _ = fetch(tmp_path, url)
    assert code == 9
    assert not (tmp_path / "layer").exists()


def test_a_document_that_breaks_off_is_asked_for_again_and_not_called_damaged(tmp_path: Path) -> None:
    with server("breaks off") as (url, asked):
        code, said = shell(
            tmp_path,
            f"servers='{url}' attempts=2\nrandom() {{ echo 0; }}\n"
            f"fetch download 'boot plan' {DIGEST} {tmp_path}/plan 500000\necho FETCHED $giver",
        )
    assert (code, len(asked)) == (0, 2)
    assert said.splitlines()[-1] == f"FETCHED {url}"


def test_a_document_that_is_too_long_is_not_taken(tmp_path: Path) -> None:
    with server("well") as (url, _):
        code, said = shell(
            tmp_path, f"servers='{url}' attempts=1\nfetch download 'boot plan' {DIGEST} {tmp_path}/plan 100"
        )
    assert (code, said[:28]) == (9, "DIE no server has the boot p")


def test_nobody_having_it_ends_after_bounded_tries(tmp_path: Path) -> None:
    code, said = fetch(tmp_path, "http://127.0.0.1:1")
    assert code == 9
    assert said.splitlines()[-1] == f"DIE no server has the layer {DIGEST}: asked http://127.0.0.1:1, 2 times"


def read_plan(tmp_path: Path, text: str) -> tuple[int, str]:
    path = tmp_path / "plan"
    path.write_text(text)
    return shell(tmp_path, f'read_plan {path}\necho "$capsule:$version $need $total $manifest $tree $release"\n'
                           'echo "$layers"')  # fmt: skip


def test_a_plan_is_read(tmp_path: Path) -> None:
    code, said = read_plan(tmp_path, PLAN)
    assert code == 0
    lines = said.splitlines()
    assert lines[0] == f"compute:7 1000 300 sha256:{'a' * 64} sha256:{'b' * 64} 6.1.0"
    assert lines[1:3] == [f"sha256:{'1' * 64} 100", f"sha256:{'2' * 64} 200"]


@pytest.mark.parametrize(
    ("summary", "old", "new"),
    [
        ("another form", "vnfs-plan 1", "vnfs-plan 2"),
        ("cut short", "end\n", ""),
        ("an unknown line", "end\n", "run reboot\nend\n"),
        ("something after the end", "end\n", "end\nlayer x 1\n"),
        ("a size that is none", "layer sha256:" + "1" * 64 + " 100", "layer sha256:" + "1" * 64 + " $(id)"),
        ("a digest that is none", "layer sha256:" + "1" * 64, "layer ../../" + "1" * 64),
        ("a name that JSON would trip over", "capsule compute", 'capsule a"b'),
        ("no tree", "tree sha256:" + "b" * 64 + "\n", ""),
        ("no layers", f"layer sha256:{'1' * 64} 100\nlayer sha256:{'2' * 64} 200\n", ""),
    ],
)
def test_a_plan_of_another_form_is_refused(tmp_path: Path, summary: str, old: str, new: str) -> None:
    assert old in PLAN
    code, said = read_plan(tmp_path, PLAN.replace(old, new))
    assert (code, said[:22]) == (9, "DIE the boot plan sha2"), said


@pytest.mark.parametrize(
    ("summary", "has", "free", "layers", "boots"),
    [
        ("enough", 1000, 900, 300, True),
        ("less than the capsule needs", 500, 450, 300, False),
        ("enough in all, but taken", 1000, 400, 300, False),
    ],
)
def test_memory_is_weighed_before_anything_is_fetched(
    tmp_path: Path, summary: str, has: int, free: int, layers: int, boots: bool
) -> None:
    code, said = shell(
        tmp_path,
        f"memory() {{ [ $1 = MemTotal ] && echo {has}000000 || echo {free}000000; }}\n"
        f"capsule=compute version=7 need={layers + 256}000000 total={layers}000000\ncheck_memory",
    )
    assert code == (0 if boots else 9)
    if not boots:
        assert f"this node has {has} MB ({free} MB free), compute:7 needs {layers + 256} MB ({layers} MB" in said


def tar(*members: tuple[str, bytes | None, int], links: tuple[tuple[str, str], ...] = ()) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data, mode in members:
            member = tarfile.TarInfo(name)
            member.type = tarfile.DIRTYPE if data is None else tarfile.REGTYPE
            member.mode, member.uid, member.size = mode, 1000, len(data or b"")
            archive.addfile(member, io.BytesIO(data or b""))
        for name, target in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    return out.getvalue()


def apply_files(tmp_path: Path, data: bytes) -> tuple[int, str]:
    """Lay node files over tmp_path/root, with a /run of the namespace's own."""
    (tmp_path / "files.tar").write_bytes(data)
    return shell(
        tmp_path,
        f"""
        new={tmp_path}/root files=sha256:x
        fetch() {{ cp {tmp_path}/files.tar "$4"; }}
        mkdir -p $new/run
        mount -t tmpfs none /run; mkdir /run/vnfs
        mount --bind /run $new/run
        apply_files
        ls -A /run/vnfs
        """,
    )


def test_node_files_are_laid_over_the_root_as_roots_and_without_set_uid(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "root").mkdir(parents=True, mode=0o700)
    (root / "etc").mkdir(mode=0o750)
    outside = tmp_path / "outside"
    outside.write_text("untouched")
    (root / "etc/link").symlink_to(outside)
    data = tar(("etc", None, 0o777), ("etc/link", b"new", 0o644), ("root/.ssh", None, 0o700),
               ("root/.ssh/authorized_keys", b"key", 0o600), ("etc/tool", b"x", 0o6755))  # fmt: skip
    assert apply_files(tmp_path, data) == (0, "")
    assert (root / "root/.ssh/authorized_keys").read_bytes() == b"key"
    assert (root / "root/.ssh").stat().st_mode & 0o7777 == 0o700
    assert (root / "root/.ssh/authorized_keys").stat().st_uid == 0
    assert (root / "etc/tool").stat().st_mode & 0o7777 == 0o755
    assert (root / "etc").stat().st_mode & 0o7777 == 0o750, "a directory that is there keeps its mode"
    assert outside.read_text() == "untouched"
    assert (root / "etc/link").read_bytes() == b"new"


def test_directories_that_are_links_are_followed_inside_the_root_only(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "usr/etc").mkdir(parents=True)
    (root / "etc").symlink_to("/usr/etc")
    assert apply_files(tmp_path, tar(("etc/motd", b"hello", 0o644))) == (0, "")
    assert (root / "usr/etc/motd").read_bytes() == b"hello"
    assert not Path("/usr/etc/motd").exists()


@pytest.mark.parametrize(
    ("summary", "data"),
    [
        ("a link", tar(links=(("etc/shadow", "/etc/passwd"),))),
        ("no tar", b"\x1f\x8bnothing" * 100),
    ],
)
def test_strange_node_files_are_refused(tmp_path: Path, summary: str, data: bytes) -> None:
    (tmp_path / "root").mkdir()
    code, said = apply_files(tmp_path, data)
    assert code == 9, said
    assert "node files sha256:x" in said


def test_node_files_that_climb_out_stay_inside(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    assert apply_files(tmp_path, tar(("../../../escaped", b"x", 0o644))) == (0, "")
    assert (tmp_path / "root/escaped").read_bytes() == b"x"
    assert not (tmp_path / "escaped").exists()
    assert not Path("/escaped").exists()


def test_words_of_a_dhcp_server_are_checked_before_they_are_written(tmp_path: Path) -> None:
    _, said = shell(
        tmp_path,
        f"""
        ip() {{ :; }}
        mount -t tmpfs none /run; mkdir /run/vnfs
        echo old >{tmp_path}/resolv; mount --bind {tmp_path}/resolv /etc/resolv.conf
        hostname() {{ echo "HOSTNAME $1"; }}
        export interface=lo ip=10.0.0.9 mask=24 router='10.0.0.1' domain='lab;reboot' hostname='$(reboot)'
        export dns='10.0.0.2 x"y'
        ( set +u; set -- bound; . "$SCRIPTS/udhcpc.sh" )
        cat /run/vnfs/network /run/vnfs/interfaces /etc/resolv.conf
        """,
    )
    assert said.splitlines() == [
        "MAC=00:00:00:00:00:00",
        "ADDRESS=10.0.0.9/24",
        "GATEWAY=10.0.0.1",
        "DNS=10.0.0.2",
        "auto mac/00:00:00:00:00:00=vnfs",
        "iface vnfs inet dhcp",
        "nameserver 10.0.0.2",
    ]
