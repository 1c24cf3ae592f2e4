"""Downloads are resumed, verified and never tried again when they are wrong. Against a real server on loopback."""

from __future__ import annotations

import hashlib
import random
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.aptrepo import HttpServer
from vnfsbuild.errors import NetworkError, NotFound, TrustError, UsageError
from vnfsbuild.fetch import Downloader
from vnfsbuild.model import Blob

DATA = random.Random(1).randbytes(1_500_000)


def blob_of(data: bytes) -> Blob:
    return Blob(f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))


BLOB = blob_of(DATA)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HttpServer]:
    root = tmp_path / "www"
    root.mkdir()
    (root / "file").write_bytes(DATA)
    with HttpServer(root) as made:
        yield made


@pytest.fixture
def downloader(tmp_path: Path) -> Downloader:
    return Downloader(tmp_path / "cache", attempts=3, timeout=5)


def leftovers(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file())


def test_a_file_is_verified_named_by_its_digest_and_then_cached(server: HttpServer, downloader: Downloader) -> None:
    for _ in range(2):
        path = downloader.file(f"{server.url}/file", blob=BLOB)
        assert path.name == BLOB.hex
        assert path.read_bytes() == DATA
    assert server.count("/file") == 1


def test_a_cached_file_that_rotted_is_fetched_again(server: HttpServer, downloader: Downloader) -> None:
    path = downloader.file(f"{server.url}/file", blob=BLOB)
    path.chmod(0o644)
    path.write_bytes(flipped(DATA))
    assert downloader.file(f"{server.url}/file", blob=BLOB).read_bytes() == DATA
    assert server.count("/file") == 2


@pytest.mark.parametrize("ranges", [True, False], ids=["with Range", "server ignores Range"])
@pytest.mark.parametrize("lengths", [True, False], ids=["with length", "without length"])
def test_a_broken_connection_is_gone_on_with(
    server: HttpServer, downloader: Downloader, ranges: bool, lengths: bool
) -> None:
    server.cut["/file"] = [500_000, 600_000]
    server.ranges, server.lengths = ranges, lengths
    assert downloader.file(f"{server.url}/file", blob=BLOB).read_bytes() == DATA
    assert [span for _, span in server.requests[1:2]] == ["bytes=500000-"]


def test_the_next_run_goes_on_where_this_one_stopped(server: HttpServer, tmp_path: Path) -> None:
    server.cut["/file"] = [900_000, 0, 0]
    first = Downloader(tmp_path / "cache", attempts=2, timeout=5)
    with pytest.raises(NetworkError, match=r"/file.*900000 of 1500000 bytes"):
        first.file(f"{server.url}/file", blob=BLOB)
    assert leftovers(tmp_path) == [f"{BLOB.hex}.part"]
    server.cut.clear()
    Downloader(tmp_path / "cache").file(f"{server.url}/file", blob=BLOB)
    assert server.requests[-1] == ("/file", "bytes=900000-")
    assert leftovers(tmp_path) == [BLOB.hex]


def test_a_torn_part_of_an_earlier_run_is_thrown_away(server: HttpServer, downloader: Downloader) -> None:
    downloader.blobs.partial(BLOB).write_bytes(b"\0" * 1000)
    assert downloader.file(f"{server.url}/file", blob=BLOB).read_bytes() == DATA
    assert server.requests[-1] == ("/file", "")


def flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize(
    ("data", "lengths"),
    [(flipped(DATA), True), (DATA[:-1], True), (DATA + b"!", True), (DATA * 3, False)],
    ids=["one flipped bit", "another file, shorter", "another file, longer", "endless"],
)
def test_wrong_bytes_are_refused_at_once_and_nothing_stays(
    server: HttpServer, downloader: Downloader, tmp_path: Path, data: bytes, lengths: bool
) -> None:
    server.replace["/file"] = data
    server.lengths = lengths
    with pytest.raises(TrustError, match="/file"):
        downloader.file(f"{server.url}/file", blob=BLOB)
    assert server.count("/file") == 1
    assert not downloader.blobs.has(BLOB)
    assert sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file()) == 0


def test_a_busy_server_is_asked_again(server: HttpServer, downloader: Downloader) -> None:
    server.fail["/file"] = [503, 429]
    assert downloader.file(f"{server.url}/file", blob=BLOB).read_bytes() == DATA


def test_a_busy_server_is_left_alone_as_long_as_it_asks(server: HttpServer, downloader: Downloader) -> None:
    server.fail["/file"] = [503]
    server.fail_headers = {"Retry-After": "3"}
    began = time.monotonic()
    assert downloader.file(f"{server.url}/file", blob=BLOB).read_bytes() == DATA
    assert time.monotonic() - began >= 3


def test_a_missing_file_is_not_asked_for_again(server: HttpServer, downloader: Downloader) -> None:
    with pytest.raises(NetworkError, match=r"/gone: HTTP 404") as caught:
        downloader.file(f"{server.url}/gone", blob=BLOB)
    assert isinstance(caught.value, NotFound)
    assert server.count("/gone") == 1


def test_a_server_that_is_not_there_is_named_with_the_cause(downloader: Downloader) -> None:
    with pytest.raises(NetworkError, match=r"http://127\.0\.0\.1:1/x.*refused.*tried 3 times"):
        downloader.file("http://127.0.0.1:1/x", blob=BLOB)


def test_a_certificate_that_does_not_hold_is_refused_at_once(tmp_path: Path) -> None:
    made = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=localhost", "-days", "1"]
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(["openssl", "req", "-x509", *made, "-keyout", key, "-out", certificate], check=True, stderr=-3)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/file"
        greeted: list[str] = []

        def greet() -> None:
            while True:
                try:
                    connection = listener.accept()[0]
                except OSError:
                    return
                greeted.append("")
                with suppress(OSError), context.wrap_socket(connection, server_side=True):
                    pass

        threading.Thread(target=greet, daemon=True).start()
        with pytest.raises(TrustError, match=f"{url}: the server's certificate does not hold: .*verify failed"):
            Downloader(tmp_path / "cache", timeout=5).file(url, blob=BLOB)
        listener.shutdown(socket.SHUT_RDWR)
    assert len(greeted) == 1


@pytest.mark.parametrize("url", ["http://", "http://[::1/x", "https:///x"])
def test_what_is_no_address_is_refused_at_once(downloader: Downloader, url: str) -> None:
    with pytest.raises(UsageError, match="is no address"):
        downloader.file(url, blob=BLOB)


def test_silence_is_an_error(server: HttpServer, tmp_path: Path) -> None:
    server.stall.add("/file")
    with pytest.raises(NetworkError, match="timed out"):
        Downloader(tmp_path / "cache", attempts=1, timeout=0.3).file(f"{server.url}/file", blob=BLOB)


def test_a_file_of_unknown_content_is_bounded(server: HttpServer, downloader: Downloader) -> None:
    assert downloader.file(f"{server.url}/file", limit=len(DATA)).read_bytes() == DATA
    with pytest.raises(TrustError, match="larger than the 1000 bytes"):
        downloader.file(f"{server.url}/file", limit=1000)


def test_file_urls_are_read_and_verified_too(downloader: Downloader, tmp_path: Path) -> None:
    source = tmp_path / "with blank"
    source.write_bytes(DATA)
    assert downloader.file(source.as_uri(), blob=BLOB).read_bytes() == DATA
    with pytest.raises(TrustError):
        downloader.file(source.as_uri(), blob=blob_of(DATA + b"!"))
    with pytest.raises(NotFound):
        downloader.file((tmp_path / "nowhere").as_uri(), blob=blob_of(b"x"))


def test_other_schemes_are_refused(downloader: Downloader) -> None:
    with pytest.raises(UsageError):
        downloader.file("ftp://example.org/x", blob=BLOB)


def test_many_report_every_file_and_every_byte_once(server: HttpServer, downloader: Downloader) -> None:
    files = {f"/f{number}": random.Random(number).randbytes(40_000 + number) for number in range(30)}
    for path, data in files.items():
        (server.root / path[1:]).write_bytes(data)
    server.cut["/f3"] = [20_000]
    items = [(server.url + path, blob_of(data)) for path, data in files.items()]
    for _ in range(2):
        seen: list[Blob] = []
        amounts: list[int] = []

        def done(blob: Blob, path: Path, seen: list[Blob] = seen) -> None:
            assert blob_of(path.read_bytes()) == blob
            seen.append(blob)

        downloader.many(items, done=done, advance=amounts.append)
        assert sorted(blob.hex for blob in seen) == sorted(blob.hex for _, blob in items)
        assert sum(amounts) == sum(map(len, files.values()))
    assert len(server.requests) == len(files) + 1


def test_the_first_error_stops_the_rest_soon(server: HttpServer, tmp_path: Path) -> None:
    server.stall.update(f"/s{number}" for number in range(3))
    items = [(f"{server.url}/s{number}", blob_of(b"%d" % number)) for number in range(3)]
    began = time.monotonic()
    with pytest.raises(NetworkError, match="/gone"):
        Downloader(tmp_path / "cache", threads=4, timeout=30).many(
            [*items, (f"{server.url}/gone", BLOB)], done=lambda *_: None, advance=lambda _: None
        )
    assert time.monotonic() - began < 4


def test_an_error_of_the_listener_is_raised(server: HttpServer, downloader: Downloader) -> None:
    def done(_blob: Blob, _path: Path) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        downloader.many([(f"{server.url}/file", BLOB)], done=done, advance=lambda _: None)


def test_ctrl_c_leaves_only_parts(server: HttpServer, tmp_path: Path) -> None:
    server.stall.add("/stalled")
    program = f"""
import sys
from pathlib import Path
from vnfsbuild.fetch import Downloader
from vnfsbuild.model import Blob
one = "{server.url}/file", Blob("{BLOB.digest}", {BLOB.size})
other = "{server.url}/stalled", Blob("{blob_of(b"x").digest}", 1)
Downloader(Path("{tmp_path / "cache"}")).many(
    [one, other], done=lambda *_: print("one", flush=True), advance=lambda _: None
)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"one\n"
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        process.wait(10)
        assert time.monotonic() - began < 8
    assert set(leftovers(tmp_path)) <= {BLOB.hex, f"{blob_of(b'x').hex}.part"}


def test_two_at_once_fetch_a_file_once(server: HttpServer, tmp_path: Path) -> None:
    fetchers = [Downloader(tmp_path / "cache") for _ in range(4)]
    threads = [
        threading.Thread(target=one.file, args=(f"{server.url}/file",), kwargs={"blob": BLOB}) for one in fetchers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.count("/file") == 1
    assert leftovers(tmp_path) == [BLOB.hex]
