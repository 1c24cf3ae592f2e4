"""The calls of the OCI distribution API that moving a capsule takes, on one repository of one registry.

Knows manifests and blobs as bytes; what they mean is not its business. Source of the calls: the OCI Distribution
Specification 1.1, end-1 to end-13.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlencode, urljoin, urlsplit

import requests

from vnfsbuild.deliver.transfer.remote import Remote
from vnfsbuild.deliver.transfer.transport import Http, bare, read_bounded, stream
from vnfsbuild.errors import NetworkError, NotFound, TrustError, VnfsError
from vnfsbuild.model import Blob, one_line
from vnfsbuild.store.cas import digest_of
from vnfsbuild.store.manifest import MANIFEST

MAX_MANIFEST = 4 << 20
UPLOAD_PIECE = 32 << 20
_READ = 1 << 18
_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})\Z")
_RECEIVED = re.compile(r"(?:bytes=)?0-(\d{1,19})\Z")
_BINARY = "application/octet-stream"

Advance = Callable[[int], None]


class _Slice:
    """A piece of a file as a request's body, counted as it leaves."""

    def __init__(self, path: Path, start: int, size: int, advance: Advance) -> None:
        self._file = open(path, "rb")  # noqa: SIM115
        self._file.seek(start)
        self._left = size
        self._size = size
        self._advance = advance

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        while data := self.read(_READ):
            yield data

    def read(self, size: int = -1) -> bytes:
        # http.client asks for 16 KiB at a time, which costs more than sending them.
        data = self._file.read(min(self._left, max(size, _READ)))
        self._left -= len(data)
        self._advance(len(data))
        if not data:
            self._file.close()
        return data


class Repository:
    """One repository of a registry. Every method raises NetworkError, TrustError, NotFound or VnfsError as `Http`."""

    def __init__(self, remote: Remote, http: Http) -> None:
        self.remote = remote
        self.http = http
        self._root = f"{http.base}/v2/{remote.repository}"

    # ---- manifests

    def manifest(self) -> bytes:
        """The manifest that the remote's tag or digest names, checked against the digest and the answer's header."""
        url = f"{self._root}/manifests/{self.remote.target}"
        response = self.http.send("GET", url, ok=frozenset({200}), headers={"Accept": MANIFEST})
        with response:
            data = read_bounded(response, MAX_MANIFEST)
            promised = {self.remote.digest, response.headers.get("Docker-Content-Digest")} - {None}
        for digest in promised:
            if digest != digest_of(data):
                raise TrustError(
                    f"{self.remote}: what the registry sent is {digest_of(data)}, not {one_line(str(digest))}",
                    "the registry is damaged, or something between it and us changes bytes; nothing was stored",
                )
        return data

    def put_manifest(self, tag: str, data: bytes) -> None:
        """Name a version in the repository. Raises TrustError when the registry says it understood other bytes."""
        url = f"{self._root}/manifests/{tag}"
        headers = {"Content-Type": MANIFEST}
        response = self.http.send("PUT", url, ok=frozenset({200, 201, 202}), headers=headers, body=lambda: data)
        response.close()
        digest = response.headers.get("Docker-Content-Digest")
        if digest and digest != digest_of(data):
            raise TrustError(f"{url}: the registry stored {one_line(digest)}, not {digest_of(data)}")

    # ---- blobs

    def has(self, blob: Blob, *, retry: bool = True) -> bool:
        """Whether the registry has a blob of that name and size."""
        try:
            response = self.http.send("HEAD", self._blob(blob), ok=frozenset({200}), retry=retry)
        except NotFound:
            return False
        response.close()
        return response.headers.get("Content-Length", str(blob.size)) == str(blob.size)

    @contextmanager
    def read(self, blob: Blob, offset: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        """The content of a blob from `offset` on, or from where the server would rather begin (0): yields that offset
        and the pieces. Content is not verified here, but never more than the blob's size is yielded."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        response = self.http.send("GET", self._blob(blob), ok=frozenset({200, 206, 416}), headers=headers, retry=False)
        with response:
            start = 0
            if response.status_code == 206:
                start = self._start(response, blob, offset)
            elif response.status_code == 416:
                raise TrustError(f"{self._blob(blob)}: the registry has less than the {blob.size} bytes it should")
            yield start, self._bounded(response, blob, start)

    def _start(self, response: requests.Response, blob: Blob, offset: int) -> int:
        said = response.headers.get("Content-Range", "")
        match = _RANGE.match(said)
        if not match or (int(match[1]), int(match[3])) != (offset, blob.size):
            raise TrustError(f"{self._blob(blob)}: asked from byte {offset} on, got {one_line(said)!r}")
        return offset

    def _bounded(self, response: requests.Response, blob: Blob, start: int) -> Iterator[bytes]:
        left = blob.size - start
        for piece in stream(response, _READ):
            left -= len(piece)
            if left < 0:
                raise TrustError(f"{self._blob(blob)}: the registry sends more than the {blob.size} bytes it should")
            yield piece
        if left:
            raise NetworkError(f"{self._blob(blob)} broke off {left} bytes early", "run it again: it resumes")

    # ---- upload

    def upload(self, blob: Blob, path: Path, advance: Advance) -> None:
        """Send a blob in pieces. After a failure the registry is asked how much it has, and the rest is sent; where
        it cannot tell, all is sent again. Gives up after several failures without a byte of progress."""
        location, sent, failures, best = "", 0, 0, 0
        while True:
            try:
                if not location:
                    location, sent = self._begin(), 0
                while sent < blob.size:
                    size = min(UPLOAD_PIECE, blob.size - sent)
                    try:
                        location = self._piece(location, path, sent, size, advance)
                    except _NoPieces:
                        self._whole(self._begin(), blob, path, advance)
                        return
                    sent += size
                self._finish(location, blob)
                return
            except NetworkError as error:
                location, sent = self._resume_at(location)
                failures = 0 if sent > best else failures + 1
                best = max(best, sent)
                if failures > self.http.retries:
                    raise
                self.http.pause(failures, error)
                with suppress(NetworkError):
                    if not location and self.has(blob, retry=False):
                        return

    def _begin(self) -> str:
        url = f"{self._root}/blobs/uploads/"
        headers = {"Content-Length": "0"}
        return self._location(self.http.send("POST", url, ok=frozenset({201, 202}), headers=headers, retry=False))

    def _piece(self, location: str, path: Path, start: int, size: int, advance: Advance) -> str:
        headers = {"Content-Type": _BINARY, "Content-Range": f"{start}-{start + size - 1}"}
        answer = frozenset({200, 201, 202, 204, 404, 405, 416, 501})
        # Never repeated blindly: the registry may have appended a part of the piece before it failed.
        response = self.http.send(
            "PATCH",
            location,
            ok=answer,
            headers=headers,
            body=lambda: _Slice(path, start, size, advance),
            retry=False,
        )
        if response.status_code in {405, 501}:
            response.close()
            raise _NoPieces
        if response.status_code in {404, 416}:
            response.close()
            raise NetworkError(f"{bare(location)}: the registry lost track of the upload")
        received = _RECEIVED.match(response.headers.get("Range", ""))
        if received and int(received[1]) + 1 != start + size:
            response.close()
            raise NetworkError(f"{bare(location)}: the registry counted {int(received[1]) + 1} bytes")
        return self._location(response)

    def _resume_at(self, location: str) -> tuple[str, int]:
        """Where an upload can go on, or ("", 0) to begin anew."""
        if not location:
            return "", 0
        with suppress(VnfsError):
            response = self.http.send("GET", location, ok=frozenset({200, 204}), retry=False)
            received = _RECEIVED.match(response.headers.get("Range", ""))
            following = self._location(response)
            # "0-0" is what some registries answer for one byte, and for none. docker-registry 2.8 refuses this call
            # when the connection broke within a piece: then all is sent again.
            if received and int(received[1]) > 0:
                return following, int(received[1]) + 1
        return "", 0

    def _whole(self, location: str, blob: Blob, path: Path, advance: Advance) -> None:
        self._close(location, blob, lambda: _Slice(path, 0, blob.size, advance))

    def _finish(self, location: str, blob: Blob) -> None:
        self._close(location, blob, lambda: b"")

    def _close(self, location: str, blob: Blob, body: Callable[[], object]) -> None:
        url = location + ("&" if urlsplit(location).query else "?") + urlencode({"digest": blob.digest})
        try:
            headers = {"Content-Type": _BINARY}
            self.http.send("PUT", url, ok=frozenset({200, 201, 204}), headers=headers, body=body, retry=False).close()
        except NotFound as error:
            raise NetworkError(f"{bare(location)}: the registry lost track of the upload") from error

    def _location(self, response: requests.Response) -> str:
        """Where the registry wants the next request: perhaps relative, perhaps with a query that must be kept."""
        response.close()
        said = response.headers.get("Location", "")
        try:
            following = urljoin(response.url or self._root, said)
            downgraded = urlsplit(following).scheme != urlsplit(self._root).scheme
        except ValueError:
            downgraded = True
        if not said or (downgraded and urlsplit(self._root).scheme == "https"):
            raise TrustError(f"{self._root}: the registry sends an upload to {one_line(said)!r}: no safe address")
        return following

    def _blob(self, blob: Blob) -> str:
        return f"{self._root}/blobs/{blob.digest}"


class _NoPieces(Exception):
    """The registry takes blobs only whole."""
