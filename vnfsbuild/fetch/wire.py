"""Reads from http, https and file URLs, from any byte on. Nothing is believed, retried or written here."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

import requests
import urllib3

from vnfsbuild.errors import NetworkError, NotFoundOnServer, TrustError, UsageError
from vnfsbuild.host.http import TRANSIENT, asked_to_wait, reason, session

CHUNK = 256 << 10
_BROKEN = (requests.RequestException, urllib3.exceptions.HTTPError, ConnectionError, TimeoutError)
_NO_ADDRESS = (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, requests.exceptions.MissingSchema)


class Transient(Exception):
    """The server broke off or asked us to come back, in `wait` seconds if it said so."""

    def __init__(self, message: str, *, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


class Cancelled(Exception):
    """Another download failed, or the user had enough."""


class Connections:
    """Connections of each thread, kept open between files. `timeout`: seconds to connect, and of silence."""

    def __init__(self, timeout: tuple[float, float]) -> None:
        self.timeout = timeout
        self._local = threading.local()

    @property
    def session(self) -> requests.Session:
        """This thread's."""
        found: requests.Session | None = getattr(self._local, "session", None)
        if found is None:
            found = self._local.session = session()
        return found

    def close(self) -> None:
        """Close this thread's."""
        if hasattr(self._local, "session"):
            self._local.session.close()
            del self._local.session


class Wire:
    """The reading side of downloads that are stopped together. Setting `stop` ends them at the next piece."""

    def __init__(self, connections: Connections, stop: threading.Event) -> None:
        self._connections = connections
        self._stop = stop
        self._active: set[requests.Response] = set()
        self._guard = threading.Lock()

    def interrupt(self) -> None:
        """Wake the threads that wait for a server."""
        with self._guard:
            for response in self._active:
                wake = getattr(response.raw, "shutdown", None)  # urllib3 has it since 2.3; else the timeout ends it
                if wake:
                    with suppress(Exception):
                        wake()

    @contextmanager
    def open(self, url: str, start: int) -> Iterator[tuple[int, int | None, Iterator[bytes]]]:
        """Open `url` from byte `start`: where it really begins, its whole size if known, and its bytes.

        Raises Transient where asking again may help, Cancelled, NotFoundOnServer or another NetworkError where it
        will not, TrustError for a certificate that does not hold, UsageError for what is no URL.
        """
        try:
            scheme = urlsplit(url).scheme
        except ValueError as error:
            raise UsageError(f"{url} is no address: {error}") from error
        if scheme == "file":
            yield from self._open_file(url, start)
            return
        if scheme not in {"http", "https"}:
            raise UsageError(f"{url}: only http, https and file URLs can be fetched")
        with self._respond(url, start) as response:
            begin, total = _extent(response, start, url)
            yield begin, total, self._chunks(response)

    def _open_file(self, url: str, start: int) -> Iterator[tuple[int, int | None, Iterator[bytes]]]:
        path = Path(unquote(urlsplit(url).path))
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFoundOnServer(f"could not get {url}: there is no such file", "look at the URL") from None
        except OSError as error:
            raise NetworkError(f"could not get {url}: {error.strerror}", "look at the URL") from error
        with open(descriptor, "rb") as source:
            source.seek(start)
            yield start, os.fstat(descriptor).st_size, iter(lambda: source.read(CHUNK), b"")

    @contextmanager
    def _respond(self, url: str, start: int) -> Iterator[requests.Response]:
        if self._stop.is_set():
            raise Cancelled
        headers = {"Range": f"bytes={start}-"} if start else {}
        try:
            response = self._connections.session.get(
                url, headers=headers, stream=True, timeout=self._connections.timeout, allow_redirects=True
            )
        except requests.exceptions.SSLError as error:
            raise TrustError(
                f"{url}: the server's certificate does not hold: {reason(error)}",
                "use a mirror whose certificate this host trusts (REQUESTS_CA_BUNDLE)",
            ) from error
        except _NO_ADDRESS as error:
            raise UsageError(f"{url} is no address: {reason(error)}") from error
        except _BROKEN as error:
            raise Transient(reason(error)) from error
        with self._guard:
            self._active.add(response)
        try:
            yield response
        finally:
            with self._guard:
                self._active.discard(response)
            response.close()

    def _chunks(self, response: requests.Response) -> Iterator[bytes]:
        while True:
            if self._stop.is_set():
                raise Cancelled
            try:
                chunk = response.raw.read(CHUNK, decode_content=False)
            except _BROKEN as error:
                if self._stop.is_set():
                    raise Cancelled from None
                raise Transient(reason(error)) from error
            if not chunk:
                return
            yield chunk


def _extent(response: requests.Response, start: int, url: str) -> tuple[int, int | None]:
    """Where the answer begins in the file, and how large the file is as far as the server says."""
    status = response.status_code
    if status in TRANSIENT:
        raise Transient(f"HTTP {status} {response.reason}", wait=asked_to_wait(response))
    if status == requests.codes.partial_content:
        unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
        span, _, total = rest.partition("/")
        first = span.partition("-")[0]
        if unit == "bytes" and first.isdecimal() and int(first) == start:
            return start, int(total) if total.isdecimal() else None
        raise Transient("the server answers another range than the one asked for")
    if status == requests.codes.requested_range_not_satisfiable:
        # The body is a message, not the file: answer a size that cannot be right, so that nobody reads on.
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
        if total.isdecimal() and int(total) > start:
            raise Transient("the server cannot go on where it stopped")
        return start, int(total) if total.isdecimal() else start
    if status != requests.codes.ok:
        kind = NotFoundOnServer if status in {404, 410} else NetworkError
        raise kind(f"could not get {url}: HTTP {status} {response.reason}", "look at the URL and the mirror")
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None
