"""The serving application over real sockets: what it hands out, what it refuses, how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from tests.support.program import VNFS
from vnfsbuild.model import Blob, Reference
from vnfsbuild.serve import boot
from vnfsbuild.serve.app import ServeConfig, make_app
from vnfsbuild.serve.server import serving
from vnfsbuild.store.capsules import Store
from vnfsbuild.store.cas import digest_of
from vnfsbuild.store.manifest import Capsule, Config, Kernel
from vnfsbuild.store.toc import Entry, FileType, Toc

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHjKj2n+0kq0a1tq5vYqkW3b7hTn6Vw0mXgk8rXk9s1Z admin@head"
MAC = "52:54:00:12:34:56"
LAYER = os.urandom(3_000_001)


def publish(store: Store, layer: bytes = LAYER) -> Capsule:
    toc = Toc.of([Entry("/", FileType.DIRECTORY, mode=0o755)])
    put = store.blobs.put_bytes
    config = Config(name="compute", version=1, created="2026-01-01T00:00:00Z", tree=toc.digest, family="deb",
                    distro="debian", suite="bookworm", architecture="amd64", kernel=Kernel("6.1.0"))  # fmt: skip
    return store.publish(config, layers=[put(layer)], kernel=put(b"kernel"), initrd=put(b"initrd"),
                         toc=put(toc.dump()), sbom=put(b"{}"))  # fmt: skip


@dataclass
class Site:
    url: str
    port: int
    store: Store
    capsule: Capsule
    heard: list[str]

    def blob(self, blob: Blob | str) -> str:
        digest = blob if isinstance(blob, str) else blob.digest
        return f"{self.url}/blobs/sha256/{digest.removeprefix('sha256:')}"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    store = Store(tmp_path / "store")
    capsule = publish(store)
    heard: list[str] = []
    config = ServeConfig(Reference("compute"), ssh_keys=(KEY,), report_log=tmp_path / "reports", hear=heard.append)
    with serving(make_app(store, config)) as port:
        yield Site(f"http://127.0.0.1:{port}", port, store, capsule, heard)


def test_every_blob_of_a_capsule_is_served_by_digest_and_never_changes(site: Site) -> None:
    for blob in (*site.capsule.blobs, site.capsule.manifest_blob):
        answer = requests.get(site.blob(blob), timeout=10)
        assert answer.status_code == 200
        assert digest_of(answer.content) == blob.digest
        assert answer.headers["ETag"] == f'"{blob.digest}"'
        assert "immutable" in answer.headers["Cache-Control"]
        assert answer.headers["Accept-Ranges"] == "bytes"


@pytest.mark.parametrize(
    ("header", "status", "start", "end"),
    [
        ("bytes=0-0", 206, 0, 1),
        ("bytes=1000-", 206, 1000, len(LAYER)),
        ("bytes=-10", 206, len(LAYER) - 10, len(LAYER)),
        ("bytes=10-19", 206, 10, 20),
        ("bytes=0-99999999999", 206, 0, len(LAYER)),
        ("bytes=-99999999999", 206, 0, len(LAYER)),
        (f"bytes={len(LAYER)}-", 416, 0, 0),
        ("bytes=-0", 416, 0, 0),
        ("bytes=20-10", 200, 0, len(LAYER)),
        ("bytes=0-1,5-6", 200, 0, len(LAYER)),
        ("bytes=-", 200, 0, len(LAYER)),
        ("lines=1-2", 200, 0, len(LAYER)),
    ],
)
def test_ranges(site: Site, header: str, status: int, start: int, end: int) -> None:
    answer = requests.get(site.blob(site.capsule.layers[0]), headers={"Range": header}, timeout=10)
    whole = header in {"bytes=0-99999999999", "bytes=-99999999999"}
    assert answer.status_code == (200 if whole else status)
    if status == 416:
        assert answer.headers["Content-Range"] == f"bytes */{len(LAYER)}"
        return
    assert answer.content == LAYER[start:end]
    if answer.status_code == 206:
        assert answer.headers["Content-Range"] == f"bytes {start}-{end - 1}/{len(LAYER)}"


def test_conditional_requests(site: Site) -> None:
    layer = site.capsule.layers[0]
    etag = f'"{layer.digest}"'
    for value in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        answer = requests.get(site.blob(layer), headers={"If-None-Match": value}, timeout=10)
        assert (answer.status_code, answer.content) == (304, b"")
    assert requests.get(site.blob(layer), headers={"If-None-Match": '"other"'}, timeout=10).status_code == 200
    ranged = {"Range": "bytes=5-9"}
    assert requests.get(site.blob(layer), headers=ranged | {"If-Range": etag}, timeout=10).content == LAYER[5:10]
    assert requests.get(site.blob(layer), headers=ranged | {"If-Range": '"other"'}, timeout=10).content == LAYER
    head = requests.head(site.blob(layer), timeout=10)
    assert (head.status_code, head.headers["Content-Length"], head.content) == (200, str(len(LAYER)), b"")


def test_curl_resumes_where_it_broke_off(site: Site, tmp_path: Path) -> None:
    part = tmp_path / "layer"
    part.write_bytes(LAYER[:1_234_567])
    subprocess.run(["curl", "-sS", "--fail", "-C", "-", "-o", part, site.blob(site.capsule.layers[0])], check=True)
    assert part.read_bytes() == LAYER


def raw(port: int, request: bytes) -> bytes:
    """Exactly these bytes, as no client library would send them; the answer's status line."""
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(request)
        connection.settimeout(10)
        return connection.recv(4096).split(b"\r\n", 1)[0]


@pytest.mark.parametrize(
    "path",
    [
        "/blobs/sha256/../../../../../../etc/passwd",
        "/blobs/sha256/%2e%2e%2f%2e%2e%2findex.json",
        "/blobs/sha256/..%2f..%2findex.json",
        "//etc/passwd",
        "/index.json",
        "/blobs/sha256/",
        "/blobs/sha256/" + "A" * 64,
        "/blobs/sha256/" + "a" * 63,
        "/blobs/sha256/" + "a" * 64,
        "/blobs/sha256/" + "a" * 64 + "/",
        "/blobs/sha512/" + "a" * 128,
        "/nodes/../boot.ipxe",
        "/%00",
    ],
)
def test_hostile_paths_find_nothing(site: Site, path: str) -> None:
    status = raw(site.port, f"GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())
    assert status.split()[1] in {b"400", b"404"}, status


def test_blobs_that_no_capsule_refers_to_are_not_served(site: Site) -> None:
    stray = site.store.blobs.put_bytes(b"not published")
    assert requests.get(site.blob(stray), timeout=10).status_code == 404


def test_a_version_published_while_serving_is_served_at_once_and_the_old_one_stays(site: Site) -> None:
    newer = publish(site.store, b"newer layer")
    assert requests.get(site.blob(newer.layers[0]), timeout=10).content == b"newer layer"
    assert requests.get(site.blob(site.capsule.layers[0]), timeout=10).content == LAYER
    text = requests.get(f"{site.url}/boot.ipxe", params={"mac": MAC}, timeout=10).text
    assert "compute:2" in text, "a bare name follows the newest version"


def test_a_truncated_blob_is_an_error_and_not_a_short_answer(site: Site) -> None:
    path = site.store.blobs.path(site.capsule.layers[0])
    path.chmod(0o644)
    path.write_bytes(LAYER[:100])
    assert requests.get(site.blob(site.capsule.layers[0]), timeout=10).status_code == 500


def test_a_damaged_version_does_not_stop_the_others(site: Site) -> None:
    newer = publish(site.store, b"newer layer")
    path = site.store.blobs.path(newer.config_blob)
    path.chmod(0o644)
    path.write_bytes(b"{}")
    publish(site.store, b"third")  # the index changes, and is read again
    assert requests.get(site.blob(site.capsule.layers[0]), timeout=10).status_code == 200
    status = requests.get(f"{site.url}/", timeout=10).json()
    assert [line.split(":")[1] for line in status["damaged"]] == ["2"]


def test_the_script_leads_to_a_plan_and_node_files_whose_digests_hold(site: Site) -> None:
    first = requests.get(f"{site.url}/boot.ipxe", timeout=10).text
    assert "boot.ipxe?mac=${netX/mac}" in first
    text = requests.get(f"{site.url}/boot.ipxe?mac={MAC.upper()}", timeout=10).text
    assert text == requests.get(f"{site.url}/nodes/{MAC}/boot.ipxe", timeout=10).text
    words = dict(word.split("=", 1) for word in text.split() if word.startswith("vnfs."))
    assert words["vnfs.server"] == site.url
    plan = requests.get(site.blob(words["vnfs.plan"]), timeout=10).content
    assert digest_of(plan) == words["vnfs.plan"]
    assert plan == boot.plan(site.capsule)
    files = requests.get(site.blob(words["vnfs.files"]), timeout=10).content
    assert digest_of(files) == words["vnfs.files"]


@pytest.mark.parametrize(
    ("summary", "path", "headers"),
    [
        ("no MAC address", "/boot.ipxe?mac=;shell", {}),
        ("a MAC address with more behind", f"/nodes/{MAC}%0ashell/boot.ipxe", {}),
        ("a Host that iPXE would interpret", f"/boot.ipxe?mac={MAC}", {"Host": "x${shell} y"}),
    ],
)
def test_requests_cannot_put_words_into_scripts(site: Site, summary: str, path: str, headers: dict[str, str]) -> None:
    answer = requests.get(site.url + path, headers=headers, timeout=10)
    assert answer.status_code == 400
    assert "#!ipxe" not in answer.text


def test_nodes_that_nothing_is_meant_for_get_a_script_that_says_so(tmp_path: Path) -> None:
    with serving(make_app(Store(tmp_path / "store"), ServeConfig())) as port:
        text = requests.get(f"http://127.0.0.1:{port}/boot.ipxe?mac={MAC}", timeout=10).text
    assert text.startswith("#!ipxe")
    assert f"no capsule for {MAC}" in text


def test_reports_are_kept_bounded_and_shown(site: Site, tmp_path: Path) -> None:
    url = f"{site.url}/nodes/{MAC}/report"
    said = {"event": "failed", "message": "layer \x1b[2Jis damaged" + "x" * 5000, "extra": [1]}
    assert requests.post(url, json=said, timeout=10).status_code == 204
    node = requests.get(f"{site.url}/", timeout=10).json()["nodes"][MAC]
    assert node["event"] == "failed"
    assert len(node["message"]) == 1000
    assert "\x1b" not in site.heard[-1], "what a node says cannot move an administrator's cursor"
    assert json.loads((tmp_path / "reports").read_text())["node"] == MAC
    assert requests.post(url, data=b"x" * 20_000, timeout=10).status_code == 413
    for bad in (b"", b"[1]", b"\xff", b"[" * 15_000):
        assert requests.post(url, data=bad, timeout=10).status_code == 400
    assert requests.post(f"{site.url}/nodes/root/report", json=said, timeout=10).status_code == 400


def test_large_blobs_do_not_pass_through_our_memory(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    size = 300 << 20
    with store.blobs.receive() as incoming:
        for _ in range(300):
            incoming.write(bytes(1 << 20))
        zeros = incoming.commit()
    capsule = publish(store)
    store.publish(capsule.config, layers=[zeros], kernel=capsule.kernel, initrd=capsule.initrd, toc=capsule.toc,
                  sbom=capsule.sbom)  # fmt: skip
    with vnfs_serve(store, "compute") as (process, url):
        where = f"{url}/blobs/sha256/{zeros.hex}"
        clients = [
            subprocess.Popen(
                ["curl", "-sS", "-o", "/dev/null", "-w", "%{size_download}", where], stdout=subprocess.PIPE
            )
            for _ in range(3)
        ]
        assert [client.communicate(timeout=120)[0] for client in clients] == [b"%d" % size] * 3
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    assert peak < 120_000, f"{peak} kB"


class vnfs_serve:
    """`vnfs serve` as a process of its own."""

    def __init__(self, store: Store, *words: str) -> None:
        self.argv = [*VNFS, "--store", str(store.root),
                     "serve", *words, "--listen", "127.0.0.1:0", "--json"]  # fmt: skip

    def __enter__(self) -> tuple[subprocess.Popen[bytes], str]:
        self.process = subprocess.Popen(self.argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self.process.stdout is not None
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if line.startswith(b"}"):
                return self.process, json.loads(b"".join(lines))["url"]
        raise AssertionError(self.process.communicate()[1].decode())

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_server_cleanly_even_during_a_transfer(tmp_path: Path, number: signal.Signals) -> None:
    store = Store(tmp_path / "store")
    capsule = publish(store, bytes(64 << 20))
    with vnfs_serve(store, "compute") as (process, url):
        slow = requests.get(f"{url}/blobs/sha256/{capsule.layers[0].hex}", stream=True, timeout=10)
        assert slow.raw.read(10)
        began = time.monotonic()
        process.send_signal(number)
        assert process.wait(15) == 0
        assert time.monotonic() - began < 10
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()
        slow.close()


@pytest.mark.parametrize(
    ("summary", "words", "code", "says"),
    [
        ("no such capsule", ["absent"], 1, "no capsule absent"),
        ("no address", ["compute", "--listen", "nowhere"], 2, "ADDRESS:PORT"),
        ("an address of somebody else", ["compute", "--listen", "192.0.2.1:80"], 1, "cannot listen on 192.0.2.1:80"),
        ("a key that is none", ["compute", "--ssh-key", "/etc/hostname"], 2, "/etc/hostname"),
        ("words for iPXE", ["compute", "--cmdline", "a || b"], 2, "kernel command line"),
    ],
)
def test_wrong_words_get_a_clear_error(tmp_path: Path, summary: str, words: list[str], code: int, says: str) -> None:
    store = Store(tmp_path / "store")
    publish(store)
    argv = [*VNFS, "--store", str(store.root), "serve"]
    done = subprocess.run([*argv, *words], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, says in done.stderr) == (code, True), done.stderr


def test_the_thread_ends_with_its_context_and_frees_its_port(tmp_path: Path) -> None:
    before = threading.active_count()
    with serving(make_app(Store(tmp_path / "store"), ServeConfig())) as port:
        assert requests.get(f"http://127.0.0.1:{port}/", timeout=10).status_code == 200
    with pytest.raises(requests.ConnectionError):
        requests.get(f"http://127.0.0.1:{port}/", timeout=10)
    assert threading.active_count() == before
