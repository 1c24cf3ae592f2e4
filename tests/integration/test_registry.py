"""Capsules to and from a real docker-registry: same digests, only what is missing, resumed, verified."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.capsules import FILES, make_capsule, random_bytes
from tests.support.program import VNFS
from tests.support.registry import Registry, proxy, running_registry
from vnfsbuild.deliver.transfer.registry import Moved, pull, push
from vnfsbuild.deliver.transfer.remote import Remote
from vnfsbuild.deliver.verify import verify
from vnfsbuild.errors import Conflict, NetworkError, NotFound, TrustError, UsageError, VnfsError
from vnfsbuild.host.run import run
from vnfsbuild.progress import Silent
from vnfsbuild.store.capsules import Store
from vnfsbuild.store.cas import hash_file
from vnfsbuild.store.manifest import MANIFEST, Capsule

BIG = 20 << 20
# What htpasswd -nbB someone secret prints.
HTPASSWD = "someone:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Registry]:
    with running_registry(tmp_path / "registry") as running:
        yield running


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """demo:1 with a large layer, and demo:2 with a small one above it."""
    store = Store(tmp_path_factory.mktemp("source"))
    first = make_capsule(store, files={**FILES, "opt/big": random_bytes(BIG)})
    make_capsule(store, files={"etc/motd": b"changed\n", "usr/bin/hello": None}, parent=first)
    return store


def send(store: Store, reference: str, place: str) -> Moved:
    return push(store, store.get(reference), Remote.parse(place), environ={}, monitor=Silent())


def fetch(store: Store, place: str, name: str | None = None) -> Moved:
    return pull(store, Remote.parse(place), name=name, environ={}, monitor=Silent())


def large(capsule: Capsule) -> int:
    return capsule.layers[0].size


def clean(store: Store, tmp_path: Path) -> bool:
    return verify(store, [], deep=False, work=tmp_path / "work", monitor=Silent()) == ()


def loose(store: Store) -> set[str]:
    """Blobs and unfinished files that no version needs."""
    used = {blob.hex for capsule in store.capsules() for blob in (capsule.manifest_blob, *capsule.blobs)}
    there = {path.name for path in store.root.rglob("*") if path.is_file()}
    return there - used - {"index.json", "oci-layout", "lock"}


def test_push_then_pull_gives_the_same_digests_and_moves_only_new_layers(
    server: Registry, source: Store, tmp_path: Path
) -> None:
    one, two = source.get("demo:1"), source.get("demo:2")
    first = send(source, "demo:1", f"{server.host}/hpc/demo")
    assert (first.bytes, first.blobs, first.skipped) == (sum(blob.size for blob in one.blobs), 6, 0)
    again = send(source, "demo:1", f"{server.host}/hpc/demo")
    assert (again.bytes, again.blobs, again.skipped) == (0, 0, 6)
    delta = send(source, "demo:2", f"{server.host}/hpc/demo")
    assert delta.bytes == sum(blob.size for blob in (two.config_blob, two.layers[1], two.toc))
    assert (delta.blobs, delta.skipped) == (3, 4)
    assert delta.reference == f"{server.host}/hpc/demo:2"
    assert set(server.get("/v2/hpc/demo/tags/list")["tags"]) == {"1", "2", "latest"}  # type: ignore[call-overload]

    target = Store(tmp_path / "target")
    pulled = fetch(target, f"{server.host}/hpc/demo:1")
    assert (pulled.reference, pulled.capsule.digest, pulled.bytes) == ("demo:1", one.digest, first.bytes)
    pulled = fetch(target, f"{server.host}/hpc/demo")
    assert (pulled.reference, pulled.capsule, pulled.bytes) == ("demo:2", two, delta.bytes)
    assert (fetch(target, f"{server.host}/hpc/demo@{two.digest}").bytes, loose(target)) == (0, set())
    assert clean(target, tmp_path)


def test_skopeo_sees_the_same_manifest_and_copies_the_same_blobs(
    server: Registry, source: Store, tmp_path: Path
) -> None:
    capsule = source.get("demo:2")
    send(source, "demo:2", f"{server.host}/demo")
    place = f"docker://{server.host}/demo:2"
    raw = run(["skopeo", "inspect", "--raw", "--tls-verify=false", place]).output
    assert f"sha256:{hashlib.sha256(raw).hexdigest()}" == capsule.digest
    run(["skopeo", "--insecure-policy", "copy", "--src-tls-verify=false", place, f"oci:{tmp_path}/copy:2"])
    copied = {path.name for path in (tmp_path / "copy/blobs/sha256").iterdir()}
    assert copied == {blob.hex for blob in (capsule.manifest_blob, *capsule.blobs)}
    assert all(hash_file(tmp_path / "copy/blobs/sha256" / blob.hex) == blob for blob in capsule.blobs)


def test_a_given_tag_is_the_only_one_set_and_an_older_version_does_not_become_latest(
    server: Registry, source: Store
) -> None:
    send(source, "demo:2", f"{server.host}/demo:test")
    send(source, "demo:1", f"{server.host}/demo")
    assert set(server.get("/v2/demo/tags/list")["tags"]) == {"1", "test"}  # type: ignore[call-overload]


def test_a_pull_goes_on_after_every_cut_and_moves_each_byte_once(
    server: Registry, source: Store, tmp_path: Path
) -> None:
    send(source, "demo:1", f"{server.host}/demo")
    target = Store(tmp_path / "target")
    with proxy(server.port, cut_down=3 << 20) as line:
        moved = fetch(target, f"{line.host}/demo:1")
    capsule = source.get("demo:1")
    assert line.cut >= 6
    assert moved.bytes == sum(blob.size for blob in capsule.blobs)
    assert (moved.capsule.digest, loose(target)) == (capsule.digest, set())


def test_a_push_survives_cuts_of_its_connections(server: Registry, source: Store, tmp_path: Path) -> None:
    capsule = source.get("demo:1")
    with proxy(server.port, cut_up=8 << 20, cuts=2) as line:
        moved = send(source, "demo:1", f"{line.host}/demo")
    assert line.cut == 2
    assert moved.bytes < 3 * large(capsule)
    assert fetch(Store(tmp_path / "target"), f"{server.host}/demo:1").capsule.digest == capsule.digest


def program(store: Path, *words: str) -> list[str]:
    return [*VNFS, "--store", str(store), *words]


def test_a_pull_ended_by_kill_9_is_finished_by_the_next_one_with_the_remainder_only(
    server: Registry, source: Store, tmp_path: Path
) -> None:
    send(source, "demo:1", f"{server.host}/demo")
    capsule = source.get("demo:1")
    total = sum(blob.size for blob in capsule.blobs)
    target = Store(tmp_path / "target")
    part = target.blobs.partial(capsule.layers[0])
    with proxy(server.port, slow=0.02) as line:
        argv = program(target.root, "pull", "--json", "--progress", "none", f"{line.host}/demo:1")
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 30
            while not (part.exists() and part.stat().st_size > 4 << 20):
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.01)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert target.names() == ()
    had = part.stat().st_size
    assert 4 << 20 < had < large(capsule)
    argv = program(target.root, "pull", "--json", "--progress", "none", f"{server.host}/demo:1")
    answer = json.loads(subprocess.run(argv, check=True, capture_output=True).stdout)
    assert answer["reference"] == "demo:1"
    assert answer["digest"] == capsule.digest
    assert answer["moved_bytes"] <= total - had
    assert loose(target) == set()


def test_a_pull_that_gives_up_keeps_what_came_and_shows_no_version(
    server: Registry, source: Store, tmp_path: Path
) -> None:
    send(source, "demo:1", f"{server.host}/demo")
    target = Store(tmp_path / "target")
    part = target.blobs.partial(source.get("demo:1").layers[0])
    with proxy(server.port, slow=0.01) as line:
        argv = program(target.root, "pull", "--progress", "none", f"{line.host}/demo:1")
        process = subprocess.Popen(argv, stderr=subprocess.PIPE)
        try:
            deadline = time.monotonic() + 30
            while not (part.exists() and part.stat().st_size > 200_000):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            line.cut_down = 0
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == 1
    assert b"/blobs/sha256:" in errors
    assert target.names() == ()
    assert part.stat().st_size > 200_000


@pytest.mark.parametrize("damage", ["flip", "short", "long"])
def test_a_damaged_blob_in_the_registry_is_refused_and_leaves_nothing(
    server: Registry, source: Store, tmp_path: Path, damage: str
) -> None:
    send(source, "demo:1", f"{server.host}/demo")
    capsule = source.get("demo:1")
    path = server.blob(capsule.layers[0].digest)
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    path.write_bytes({"flip": data, "short": data[:-1000], "long": data + b"more"}[damage])
    target = Store(tmp_path / "target")
    with pytest.raises((TrustError, NetworkError)) as caught:
        fetch(target, f"{server.host}/demo:1")
    assert target.names() == ()
    if damage == "flip":
        assert isinstance(caught.value, TrustError)
        assert loose(target) == set()


def test_pulling_a_version_again_fetches_what_rotted_of_it(server: Registry, source: Store) -> None:
    send(source, "demo:1", f"{server.host}/demo")
    capsule = source.get("demo:1")
    path = source.blobs.path(capsule.kernel)
    path.chmod(0o644)
    path.write_bytes(b"x" * capsule.kernel.size)
    moved = fetch(source, f"{server.host}/demo:1")
    assert (moved.blobs, moved.bytes) == (1, capsule.kernel.size)
    assert source.blobs.sound(capsule.kernel)


def test_a_damaged_blob_in_the_store_never_becomes_a_version_in_the_registry(server: Registry, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    capsule = make_capsule(store)
    path = store.blobs.path(capsule.kernel)
    path.chmod(0o644)
    path.write_bytes(b"x" * capsule.kernel.size)
    with pytest.raises(TrustError):
        send(store, "demo", f"{server.host}/demo")
    with pytest.raises(NotFound):
        fetch(Store(tmp_path / "target"), f"{server.host}/demo:1")


def test_a_number_taken_by_other_content_is_a_conflict_before_layers_move(
    server: Registry, source: Store, tmp_path: Path
) -> None:
    send(source, "demo:1", f"{server.host}/demo")
    target = Store(tmp_path / "target")
    mine = make_capsule(target, files={"etc/other": b"other"})
    with proxy(server.port) as line, pytest.raises(Conflict):
        fetch(target, f"{line.host}/demo:1")
    assert line.down < 100_000
    assert (target.get("demo:1"), loose(target)) == (mine, set())
    renamed = fetch(target, f"{server.host}/demo:1", name="theirs").capsule
    assert (renamed.reference, renamed.config.parent) == ("theirs:1", source.get("demo:1").digest)
    assert fetch(target, f"{server.host}/demo:1", name="theirs").capsule == renamed


def test_an_image_that_is_no_capsule_is_refused(server: Registry, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    (layout / "blobs/sha256").mkdir(parents=True)

    def blob(data: bytes, kind: str) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (layout / "blobs/sha256" / digest).write_bytes(data)
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}

    config = blob(b'{"architecture":"amd64","os":"linux"}', "application/vnd.oci.image.config.v1+json")
    manifest = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": []}).encode()
    index = {"schemaVersion": 2, "manifests": [blob(manifest, MANIFEST)]}
    (layout / "index.json").write_text(json.dumps(index))
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    place = f"docker://{server.host}/image:1"
    run(["skopeo", "--insecure-policy", "copy", "--dest-tls-verify=false", f"oci:{layout}", place])
    with pytest.raises(TrustError, match="not the manifest of a capsule"):
        fetch(Store(tmp_path / "target"), f"{server.host}/image:1")


def test_basic_credentials_come_from_the_environment_or_docker_login(source: Store, tmp_path: Path) -> None:
    (tmp_path / "home/.docker").mkdir(parents=True)
    capsule = source.get("demo:2")
    with running_registry(tmp_path / "registry", htpasswd=HTPASSWD) as server:
        remote = Remote.parse(f"{server.host}/demo:x")
        login = ["skopeo", "login", "--tls-verify=false", "--authfile", tmp_path / "home/.docker/config.json"]
        run([*login, "-u", "someone", "-p", "secret", server.host])
        with pytest.raises(VnfsError, match="asks for credentials"):
            push(source, capsule, remote, environ={"HOME": "/nonexistent"}, monitor=Silent())
        wrong = {"VNFS_REGISTRY_USER": "someone", "VNFS_REGISTRY_PASSWORD": "guess"}
        with pytest.raises(VnfsError, match=r"401|refuses the credentials") as caught:
            push(source, capsule, remote, environ=wrong, monitor=Silent())
        assert "guess" not in str(caught.value) + caught.value.hint
        right = {"VNFS_REGISTRY_USER": "someone", "VNFS_REGISTRY_PASSWORD": "secret"}
        push(source, capsule, remote, environ=right, monitor=Silent())
        moved = pull(Store(tmp_path / "t"), remote, environ={"HOME": str(tmp_path / "home")}, monitor=Silent())
        assert moved.capsule == capsule


def test_no_registry_listening_is_a_network_error_that_names_it(source: Store, tmp_path: Path) -> None:
    with proxy(1) as line:
        host = line.host
    with pytest.raises(NetworkError, match=host):
        fetch(Store(tmp_path / "target"), f"{host}/demo:1")


def test_a_push_to_a_digest_is_wrong_usage(source: Store) -> None:
    with pytest.raises(UsageError):
        send(source, "demo", f"127.0.0.1:5000/demo@sha256:{'0' * 64}")


def test_memory_stays_bounded_whatever_the_size(server: Registry, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    make_capsule(store, files={"opt/big": random_bytes(150 << 20)})
    peaks = []
    for words in (("push", "demo", f"{server.host}/demo"), ("pull", f"{server.host}/demo")):
        root = store.root if words[0] == "push" else tmp_path / "target"
        code = (
            "import atexit, re; from vnfsbuild.cli.main import main\n"
            "atexit.register(lambda: print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]))\n"
            f"main({['--store', str(root), *words, '--progress', 'none']!r})"
        )
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=os.environ)
        peaks.append(int(done.stdout.split()[-1]))
    assert max(peaks) < 80_000, f"peak kB of push and pull: {peaks}"
