"""Who downloads what, and on which thread: the face of `fetch`."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from vnfsbuild.fetch.job import Job
from vnfsbuild.fetch.wire import Cancelled, Connections, Wire
from vnfsbuild.model import Blob
from vnfsbuild.store.cas import LocalBlobs

_DEFAULT_LIMIT = 64 << 20
_CONNECT_TIMEOUT = 10.0
_PATIENCE = 2.0
_POLL = 0.1


class Downloader:
    """Gets files into `cache`. One object may be used from many threads.

    `attempts` is how often a file is tried without getting on; `timeout` is how many seconds of silence from a server
    are too many. Implements model.Fetcher.
    """

    def __init__(self, cache: Path, *, threads: int = 8, attempts: int = 4, timeout: float = 30) -> None:
        self.blobs = LocalBlobs(cache / "blobs")
        self._threads = threads
        self._attempts = attempts
        self._connections = Connections((min(_CONNECT_TIMEOUT, timeout), timeout))

    def file(self, url: str, *, blob: Blob | None = None, limit: int | None = None) -> Path:
        """Return a local path with the content of `url`; see model.Fetcher. Without `blob`, `limit` is 64 MiB unless
        given. Raises NetworkError, TrustError or NoSpace."""
        job = self._job(threading.Event())
        if blob is not None:
            return job.verified(url, blob, _ignore)
        return job.unnamed(url, limit or _DEFAULT_LIMIT)

    def many(
        self,
        items: Sequence[tuple[str, Blob]],
        *,
        done: Callable[[Blob, Path], None],
        advance: Callable[[int], None],
        cancel: threading.Event | None = None,
    ) -> None:
        """Get all `items` (URL and what it must be), the largest first, on `threads` threads.

        `done` hears of every file as it is ready, cached ones too, and `advance` of every byte; both are called from
        those threads. The first error (theirs too) stops the rest and is raised; setting `cancel` stops all soon, and
        Cancelled is raised.
        """
        todo: queue.SimpleQueue[tuple[str, Blob]] = queue.SimpleQueue()
        unique = {blob.digest: (url, blob) for url, blob in items}
        for item in sorted(unique.values(), key=lambda item: (-item[1].size, item[0])):
            todo.put(item)
        stop = threading.Event()
        crew = _Crew(self._job(stop), self._connections, stop, todo, done, advance)
        crew.run(min(self._threads, len(unique)), cancel or threading.Event())

    def _job(self, stop: threading.Event) -> Job:
        return Job(self.blobs, Wire(self._connections, stop), stop, self._attempts)


def _ignore(_amount: int) -> None:
    pass


class _Crew:
    """The threads of one call of `many`."""

    def __init__(
        self,
        job: Job,
        connections: Connections,
        stop: threading.Event,
        todo: queue.SimpleQueue[tuple[str, Blob]],
        done: Callable[[Blob, Path], None],
        advance: Callable[[int], None],
    ) -> None:
        self._job = job
        self._connections = connections
        self._stop = stop
        self._todo = todo
        self._done = done
        self._advance = advance
        self._ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def run(self, count: int, cancel: threading.Event) -> None:
        """Work until all is done; the first error stops the others and is raised, as Cancelled is."""
        # Daemons: a thread stuck in a name lookup must not keep a cancelled program alive.
        threads = [threading.Thread(target=self._work, name=f"fetch-{n}", daemon=True) for n in range(count)]
        try:
            for thread in threads:
                thread.start()
            working = count
            while working:
                if cancel.is_set():
                    raise Cancelled
                with suppress(queue.Empty):
                    error = self._ended.get(timeout=_POLL)
                    if error is not None:
                        raise error
                    working -= 1
        finally:
            self._stop.set()
            self._job.wire.interrupt()
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
        except (queue.Empty, Cancelled):
            pass
        except BaseException as error:  # carried to the caller's thread, and raised there
            outcome = error
        finally:
            with suppress(Exception):
                self._connections.close()
            self._ended.put(outcome)
