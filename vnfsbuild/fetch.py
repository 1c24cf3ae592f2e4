"""Downloads: many files at once, resumed, and verified before they are visible.

Owns connections, retries and the download half of the cache. What is cached is named by its digest; an unfinished
download waits as `.part` and goes on where it stopped, in this run or the next. Refuses to hand out a byte that was
not checked, and to try again after a wrong digest.
"""

from __future__ import annotations

import fcntl
import os
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

import requests
import urllib3

from vnfsbuild import __version__
from vnfsbuild.errors import NetworkError, NotFound, TrustError, UsageError
from vnfsbuild.host.fs import space_errors
from vnfsbuild.model import Blob
from vnfsbuild.store.cas import LocalBlobs

_CHUNK = 256 << 10
_DEFAULT_LIMIT = 64 << 20
_FIRST_DELAY = 0.5
_CONNECT_TIMEOUT = 10.0
_PATIENCE = 2.0
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_BROKEN = (requests.RequestException, urllib3.exceptions.HTTPError, ConnectionError, TimeoutError)


class _Transient(Exception):
    """The server broke off or asked us to come back."""


class _Cancelled(Exception):
    """Another download failed, or the user had enough."""


class Downloader:
    """Gets files into `cache`. One object may be used from many threads.

    `attempts` is how often a file is tried without getting on; `timeout` is how many seconds of silence from a server
    are too many. Implements model.Fetcher.
    """

    def __init__(self, cache: Path, *, threads: int = 8, attempts: int = 4, timeout: float = 30) -> None:
        self.blobs = LocalBlobs(cache / "blobs")
        self._threads = threads
        self._attempts = attempts
        self._timeout = (min(_CONNECT_TIMEOUT, timeout), timeout)
        self._local = threading.local()
        self._random = random.SystemRandom()

    def file(self, url: str, *, blob: Blob | None = None, limit: int | None = None) -> Path:
        """Return a local path with the content of `url`; see model.Fetcher. Without `blob`, `limit` is 64 MiB unless
        given. Raises NetworkError, TrustError or NoSpace."""
        job = _Job(self, threading.Event())
        if blob is not None:
            return job.verified(url, blob, _ignore)
        return job.unnamed(url, limit or _DEFAULT_LIMIT)

    def many(
        self,
        items: Sequence[tuple[str, Blob]],
        *,
        done: Callable[[Blob, Path], None],
        advance: Callable[[int], None],
    ) -> None:
        """Get all `items` (URL and what it must be), the largest first, on `threads` threads.

        `done` hears of every file as it is ready, cached ones too, and `advance` of every byte; both are called from
        those threads. The first error (theirs too) stops the rest and is raised.
        """
        todo: queue.SimpleQueue[tuple[str, Blob]] = queue.SimpleQueue()
        unique = {blob.digest: (url, blob) for url, blob in items}
        for item in sorted(unique.values(), key=lambda item: (-item[1].size, item[0])):
            todo.put(item)
        crew = _Crew(self, todo, done, advance)
        crew.run(min(self._threads, len(unique)))

    @property
    def session(self) -> requests.Session:
        """This thread's connections, kept open between files."""
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = requests.Session()
            session.headers.update({"User-Agent": f"vnfs/{__version__}", "Accept-Encoding": "identity"})
        return session

    def close(self) -> None:
        """Close this thread's connections."""
        if hasattr(self._local, "session"):
            self._local.session.close()
            del self._local.session

    @property
    def attempts(self) -> int:
        return self._attempts

    @property
    def timeout(self) -> tuple[float, float]:
        return self._timeout

    def delay(self, failures: int) -> float:
        """Seconds to wait after the given number of failures: doubling, and different for every client."""
        return _FIRST_DELAY * float(1 << min(failures - 1, 6)) * self._random.uniform(0.5, 1.5)


def _ignore(_amount: int) -> None:
    pass


class _Crew:
    """The threads of one call of `many`."""

    def __init__(
        self,
        downloader: Downloader,
        todo: queue.SimpleQueue[tuple[str, Blob]],
        done: Callable[[Blob, Path], None],
        advance: Callable[[int], None],
    ) -> None:
        self._downloader = downloader
        self._todo = todo
        self._done = done
        self._advance = advance
        self._stop = threading.Event()
        self._ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._job = _Job(downloader, self._stop)

    def run(self, count: int) -> None:
        # Daemons: a thread stuck in a name lookup must not keep a cancelled program alive.
        threads = [threading.Thread(target=self._work, name=f"fetch-{n}", daemon=True) for n in range(count)]
        try:
            for thread in threads:
                thread.start()
            for _ in threads:
                error = self._ended.get()
                if error is not None:
                    raise error
        finally:
            self._stop.set()
            self._job.interrupt()
            end = time.monotonic() + _PATIENCE
            for thread in threads:
                if thread.ident is not None:
                    thread.join(max(0.0, end - time.monotonic()))

    def _work(self) -> None:
        outcome: BaseException | None = None
        try:
            while not self._stop.is_set():
                url, blob = self._todo.get_nowait()
                path = self._job.verified(url, blob, self._advance)
                if not self._stop.is_set():
                    self._done(blob, path)
        except (queue.Empty, _Cancelled):
            pass
        except BaseException as error:  # carried to the caller's thread, and raised there
            outcome = error
        finally:
            with suppress(Exception):
                self._downloader.close()
            self._ended.put(outcome)


class _Job:
    """Downloads that are stopped together."""

    def __init__(self, downloader: Downloader, stop: threading.Event) -> None:
        self._downloader = downloader
        self._blobs = downloader.blobs
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

    # ---- a file whose content is known

    def verified(self, url: str, blob: Blob, advance: Callable[[int], None]) -> Path:
        """The path of `blob`, from the cache or from `url`."""
        path = self._blobs.path(blob)
        if self._blobs.has(blob):
            advance(blob.size)
            return path
        with space_errors(path), self._part(blob) as part:
            if part is None:  # another process or thread was faster
                advance(blob.size)
                return path
            progress = _Progress(advance)
            resumed = os.fstat(part.fileno()).st_size
            self._fill(url, blob, part, progress)
            try:
                self._publish(url, blob, part)
            except TrustError:
                # What an earlier run left may be torn by a power failure: only bytes of this run condemn the server.
                if not resumed:
                    raise
                self._fill(url, blob, self._reopen(part), progress)
                self._publish(url, blob, part)
        return path

    @contextmanager
    def _part(self, blob: Blob) -> Iterator[IO[bytes] | None]:
        """The unfinished file, open and ours alone; None when the blob appeared while we waited for it."""
        path = self._blobs.partial(blob)
        while True:
            with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "rb+", buffering=0) as part:
                while True:
                    try:
                        fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        break
                    except BlockingIOError:
                        if self._stop.wait(0.05):
                            raise _Cancelled from None
                if self._blobs.has(blob):
                    _remove_if_same(path, part)
                    yield None
                    return
                if _same(path, part):
                    yield part
                    return

    def _reopen(self, part: IO[bytes]) -> IO[bytes]:
        part.truncate(0)
        return part

    def _publish(self, url: str, blob: Blob, part: IO[bytes]) -> None:
        path = self._blobs.partial(blob)
        try:
            self._blobs.adopt(path, expect=blob)
        except TrustError as error:
            part.truncate(0)
            raise TrustError(
                f"{url} is not what was promised: it {error.message.removeprefix(str(path)).strip()}",
                "the mirror is out of step, damaged or tampered with: use another, or lock again",
            ) from error

    def _fill(self, url: str, blob: Blob, part: IO[bytes], progress: _Progress) -> None:
        """Append to `part` until it has the size of `blob`."""
        failures = 0
        while (have := os.fstat(part.fileno()).st_size) != blob.size:
            if have > blob.size:
                part.truncate(0)
                continue
            progress.reached(have)
            try:
                self._append(url, blob, part, have, progress)
                failures = 0
            except _Transient as error:
                if os.fstat(part.fileno()).st_size - have >= _CHUNK:
                    failures = 0
                failures += 1
                self._pause(url, failures, error)
        progress.reached(blob.size)

    def _append(self, url: str, blob: Blob, part: IO[bytes], have: int, progress: _Progress) -> None:
        with self._open(url, have) as (start, total, chunks):
            if total is not None and total != blob.size:
                part.truncate(0)
                raise TrustError(
                    f"{url} has {total} bytes, and {blob.size} were promised",
                    "the mirror is out of step or tampered with: use another, or lock again",
                )
            if start != have:
                part.truncate(start)
            part.seek(start)
            position = start
            try:
                for chunk in chunks:
                    position += len(chunk)
                    if position > blob.size:
                        part.truncate(0)
                        raise TrustError(
                            f"{url} sends more than the {blob.size} bytes that were promised", "use another mirror"
                        )
                    part.write(chunk)
                    progress.reached(position)
            except _Transient as error:
                raise _Transient(f"broke off after {position} of {blob.size} bytes: {error}") from error.__cause__
        if position < blob.size:
            raise _Transient(f"broke off after {position} of {blob.size} bytes")

    # ---- a file whose content is not known before

    def unnamed(self, url: str, limit: int) -> Path:
        """Download `url` anew and return where it lies, named by what it turned out to be."""
        failures = 0
        while True:
            try:
                return self._blobs.path(self._whole(url, limit))
            except _Transient as error:
                failures += 1
                self._pause(url, failures, error)

    def _whole(self, url: str, limit: int) -> Blob:
        with self._blobs.receive() as incoming, self._open(url, 0) as (_start, total, chunks):
            size = 0
            for chunk in chunks:
                size += len(chunk)
                if size > limit:
                    raise TrustError(f"{url} is larger than the {limit} bytes that it may be", "use another mirror")
                incoming.write(chunk)
            if total is not None and size < total:
                raise _Transient(f"broke off after {size} of {total} bytes")
            return incoming.commit()

    # ---- the wire

    def _pause(self, url: str, failures: int, error: _Transient) -> None:
        if failures >= self._downloader.attempts:
            raise NetworkError(
                f"could not get {url}: {error} (tried {failures} times)",
                "look at the network and the mirror, then run it again: what was downloaded is kept",
            ) from error.__cause__
        if self._stop.wait(self._downloader.delay(failures)):
            raise _Cancelled

    @contextmanager
    def _open(self, url: str, start: int) -> Iterator[tuple[int, int | None, Iterator[bytes]]]:
        """Open `url` from byte `start`: where it really begins, its whole size if known, and its bytes."""
        scheme = urlsplit(url).scheme
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
            yield start, os.fstat(descriptor).st_size, iter(lambda: source.read(_CHUNK), b"")

    @contextmanager
    def _respond(self, url: str, start: int) -> Iterator[requests.Response]:
        if self._stop.is_set():
            raise _Cancelled
        headers = {"Range": f"bytes={start}-"} if start else {}
        try:
            response = self._downloader.session.get(
                url, headers=headers, stream=True, timeout=self._downloader.timeout, allow_redirects=True
            )
        except _BROKEN as error:
            raise _Transient(_cause(error)) from error
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
                raise _Cancelled
            try:
                chunk = response.raw.read(_CHUNK, decode_content=False)
            except _BROKEN as error:
                if self._stop.is_set():
                    raise _Cancelled from None
                raise _Transient(_cause(error)) from error
            if not chunk:
                return
            yield chunk


def _extent(response: requests.Response, start: int, url: str) -> tuple[int, int | None]:
    """Where the answer begins in the file, and how large the file is as far as the server says."""
    status = response.status_code
    if status in _TRANSIENT:
        raise _Transient(f"HTTP {status} {response.reason}")
    if status == requests.codes.partial_content:
        unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
        span, _, total = rest.partition("/")
        first = span.partition("-")[0]
        if unit == "bytes" and first.isdecimal() and int(first) == start:
            return start, int(total) if total.isdecimal() else None
        raise _Transient("the server answers another range than the one asked for")
    if status == requests.codes.requested_range_not_satisfiable:
        # The body is a message, not the file: answer a size that cannot be right, so that nobody reads on.
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
        if total.isdecimal() and int(total) > start:
            raise _Transient("the server cannot go on where it stopped")
        return start, int(total) if total.isdecimal() else start
    if status != requests.codes.ok:
        kind = NotFoundOnServer if status in {404, 410} else NetworkError
        raise kind(f"could not get {url}: HTTP {status} {response.reason}", "look at the URL and the mirror")
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None


class NotFoundOnServer(NetworkError, NotFound):
    """The server answers, and has no such file."""

    ref = "network"


class _Progress:
    """Counts bytes forward only, so that a restart does not take back what a bar has shown."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance = advance
        self._mark = 0

    def reached(self, position: int) -> None:
        if position > self._mark:
            self._advance(position - self._mark)
            self._mark = position


def _cause(error: BaseException) -> str:
    """The innermost reason of a failure that passed through several libraries."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        inner = getattr(error, "reason", None) or next(
            (item for item in error.args if isinstance(item, Exception)), None
        )
        if isinstance(inner, BaseException):
            error = inner
    behind = error.__cause__ or error.__context__
    if isinstance(behind, OSError) and behind.strerror:
        # urllib3 wraps the kernel's words into its own, with class names.
        return behind.strerror
    text = str(error).rpartition(": ")[2] if "object at 0x" in str(error) else str(error)
    return text or type(error).__name__


def _same(path: Path, stream: IO[bytes]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(stream.fileno()))
    except FileNotFoundError:
        return False


def _remove_if_same(path: Path, stream: IO[bytes]) -> None:
    if _same(path, stream):
        path.unlink()
