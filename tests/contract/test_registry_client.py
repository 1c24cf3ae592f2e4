"""What the registry client does with servers of every kind, hostile ones included."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from tests.support.capsules import FILES, make_capsule, random_bytes
from tests.support.stranger import Stranger, stranger
from vnfsbuild.deliver.transfer.registry import Moved, pull, push
from vnfsbuild.deliver.transfer.remote import Credentials, Remote, find_credentials
from vnfsbuild.errors import NotFound, TrustError, UsageError, VnfsError
from vnfsbuild.progress import Silent
from vnfsbuild.store.capsules import Store


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("source"))
    make_capsule(store, files={**FILES, "opt/big": random_bytes(2 << 20)})
    return store


def send(store: Store, server: Stranger, environ: dict[str, str] | None = None) -> Moved:
    remote = Remote.parse(f"{server.host}/demo:1")
    return push(store, store.get("demo"), remote, environ=environ or {}, monitor=Silent())


def fetch(store: Store, server: Stranger, mark: str = ":1", environ: dict[str, str] | None = None) -> Moved:
    return pull(store, Remote.parse(f"{server.host}/demo{mark}"), environ=environ or {}, monitor=Silent())


def left(store: Store) -> set[str]:
    return {path.name for path in store.root.rglob("*") if path.is_file()} - {"lock"}


@pytest.mark.parametrize("habit", ["", "busy", "bearer", "whole only"])
def test_push_and_pull_work_with_servers_that(habit: str, source: Store, tmp_path: Path) -> None:
    with stranger(*([habit] if habit else [])) as server:
        send(source, server)
        moved = fetch(Store(tmp_path / "target"), server)
    assert moved.capsule == source.get("demo")


def test_an_upload_goes_on_where_the_registry_says_it_stopped(source: Store) -> None:
    with stranger("cut upload") as server:
        moved = send(source, server)
        asked = [path for method, path, _ in server.seen if method == "GET" and "/uploads/" in path]
        again = [(method, path) for method, path, headers in server.seen if method == "PATCH"]
    assert len(asked) == 1
    assert len(again) == moved.blobs + 1
    assert set(server.blobs) == {blob.digest for blob in source.get("demo").blobs}


@pytest.mark.parametrize(("habit", "had"), [("", 1000), ("no range", 0)])
def test_a_partial_blob_is_continued_or_begun_anew_as_the_server_can(
    habit: str, had: int, source: Store, tmp_path: Path
) -> None:
    layer = source.get("demo").layers[0]
    total = sum(blob.size for blob in source.get("demo").blobs)
    target = Store(tmp_path / "target")
    target.blobs.partial(layer).write_bytes(source.blobs.path(layer).read_bytes()[:1000])
    with stranger(*([habit] if habit else [])) as server:
        send(source, server)
        moved = fetch(target, server)
    assert moved.bytes == total - had


@pytest.mark.parametrize(
    ("habit", "says"),
    [
        ("endless", "sends more than"),
        ("gzip", "encoded bytes"),
        ("flood", "more than 4194304 bytes"),
        ("lying header", "what the registry sent is"),
    ],
)
def test_a_lying_registry_is_refused_and_leaves_nothing(habit: str, says: str, source: Store, tmp_path: Path) -> None:
    target = Store(tmp_path / "target")
    with stranger() as server:
        send(source, server)
        server.habits.add(habit)
        with pytest.raises(TrustError, match=says):
            fetch(target, server)
    assert left(target) == set()


def test_a_wrong_answer_to_a_range_is_refused(source: Store, tmp_path: Path) -> None:
    target = Store(tmp_path / "target")
    layer = source.get("demo").layers[0]
    target.blobs.partial(layer).write_bytes(b"x" * 100)
    with stranger("wrong range") as server:
        send(source, server)
        with pytest.raises(TrustError, match="asked from byte 100"):
            fetch(target, server)
    assert left(target) == set()


def test_a_poisoned_partial_blob_is_thrown_away_and_the_next_pull_succeeds(source: Store, tmp_path: Path) -> None:
    target = Store(tmp_path / "target")
    layer = source.get("demo").layers[0]
    target.blobs.partial(layer).write_bytes(b"x" * 1000)
    with stranger() as server:
        send(source, server)
        with pytest.raises(TrustError):
            fetch(target, server)
        assert left(target) == set()
        assert fetch(target, server).capsule == source.get("demo")


def test_a_digest_asked_for_is_the_digest_that_comes(source: Store, tmp_path: Path) -> None:
    with stranger() as server:
        send(source, server)
        wrong = f"sha256:{'0' * 64}"
        server.manifests[wrong] = server.manifests["1"]
        with pytest.raises(TrustError, match=f"not {wrong}"):
            fetch(Store(tmp_path / "target"), server, f"@{wrong}")


def test_a_blob_that_the_registry_lost_is_not_found_and_its_words_are_made_harmless(
    source: Store, tmp_path: Path
) -> None:
    target = Store(tmp_path / "target")
    with stranger() as server:
        send(source, server)
        del server.blobs[source.get("demo").kernel.digest]
        with pytest.raises(NotFound) as caught:
            fetch(target, server)
    assert "\x1b" not in str(caught.value)
    assert left(target) == set()


def test_a_redirect_to_another_host_does_not_carry_the_credentials(source: Store, tmp_path: Path) -> None:
    with stranger() as other, stranger("bearer") as server:
        send(source, server)
        other.blobs = server.blobs
        server.elsewhere = f"http://{other.host}"
        moved = fetch(Store(tmp_path / "target"), server)
    assert moved.capsule == source.get("demo")
    assert other.seen
    assert not any("Authorization" in headers for _, _, headers in other.seen)


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1", "http://["])
def test_a_redirect_to_what_is_no_web_address_is_refused(source: Store, tmp_path: Path, target: str) -> None:
    with stranger() as server:
        send(source, server)
        server.elsewhere = target
        with pytest.raises(VnfsError, match=r"no (safe )?address"):
            fetch(Store(tmp_path / "target"), server)


def test_a_redirect_in_circles_ends(source: Store, tmp_path: Path) -> None:
    with stranger() as server:
        send(source, server)
        server.elsewhere = f"http://{server.host}"
        with pytest.raises(VnfsError, match="in circles"):
            fetch(Store(tmp_path / "target"), server)


def test_the_password_goes_to_the_token_server_only(source: Store, tmp_path: Path) -> None:
    environ = {"VNFS_REGISTRY_USER": "someone", "VNFS_REGISTRY_PASSWORD": "secret"}
    with stranger("bearer") as server:
        send(source, server, environ)
        basic = [path for _, path, headers in server.seen if headers.get("Authorization", "").startswith("Basic")]
    assert basic
    assert all(path.startswith("/token?service=test&scope=repository%3Ademo%3Apull%2Cpush") for path in basic)


@pytest.mark.parametrize(
    ("text", "host", "repository", "target", "local"),
    [
        ("localhost/demo", "localhost", "demo", "latest", True),
        ("localhost:5000/demo:7", "localhost:5000", "demo", "7", True),
        ("127.0.0.1:5000/a/b-c/d__e:x.y", "127.0.0.1:5000", "a/b-c/d__e", "x.y", True),
        ("[::1]:5000/demo", "[::1]:5000", "demo", "latest", True),
        ("registry.example.org/hpc/demo", "registry.example.org", "hpc/demo", "latest", False),
        (f"10.0.0.1:5000/demo@sha256:{'a' * 64}", "10.0.0.1:5000", "demo", f"sha256:{'a' * 64}", False),
    ],
)
def test_a_place_is_read_as_host_repository_and_mark(
    text: str, host: str, repository: str, target: str, local: bool
) -> None:
    remote = Remote.parse(text)
    assert (remote.host, remote.repository, remote.target, remote.is_local) == (host, repository, target, local)
    assert str(remote) == text


@pytest.mark.parametrize(
    "text",
    ["", "demo", "hpc/demo", "localhost:5000", "localhost:5000/", "localhost/Demo", "localhost/../x", "a.b/c:",
     "user@a.b/c", "a.b/c:t@sha256:" + "a" * 64, "a.b/c@sha256:12", "https://a.b/c", "a.b/c?x=y", "a.b/c#d", "a.b\n/c"],
)  # fmt: skip
def test_what_is_no_place_in_a_registry_is_wrong_usage(text: str) -> None:
    with pytest.raises(UsageError):
        Remote.parse(text)


def test_credentials_are_found_for_their_own_host_only(tmp_path: Path) -> None:
    word = base64.b64encode(b"someone:pass:word").decode()
    (tmp_path / "config.json").write_text(json.dumps({"auths": {"a.example:5000": {"auth": word}}, "credsStore": "x"}))
    environ = {"DOCKER_CONFIG": str(tmp_path)}
    assert find_credentials("a.example:5000", environ) == Credentials("someone", "pass:word")
    assert find_credentials("b.example", environ) is None
    assert find_credentials("a.example:5000", {"HOME": str(tmp_path / "nowhere")}) is None
    assert "pass" not in repr(Credentials("someone", "pass:word"))
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(VnfsError, match="credentials"):
        find_credentials("a.example:5000", environ)
