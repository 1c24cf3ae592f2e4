"""The packages of a lock on their way into the workspace: downloaded, then uncompressed, while others already unpack.

dpkg would decompress each package on one core, after the one before. Here all cores decompress, at a lower priority
than dpkg itself, what it needs first, first.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from vnfsbuild.family import Download
from vnfsbuild.family.deb.archive import control, uncompress
from vnfsbuild.lockfile import Lock, LockedPackage
from vnfsbuild.model import Blob
from vnfsbuild.progress import Monitor

_NICENESS = 10
_POLL = 0.1


# A package this large takes one core as long as all the others take together: it must not be the last to begin.
_GIANT = 32 << 20


def _rank(package: LockedPackage) -> int:
    """What is uncompressed first: what must run first, then giants, then the small ones, on which others depend."""
    if package.essential:
        return 0
    return 1 if package.size >= _GIANT else package.size


class _Stopped(Exception):
    """Nobody waits for the packages any more."""


class Supply:
    """Packages by name. `wait` and `stanzas` block until they are there, and raise what went wrong on the way."""

    def __init__(self, lock: Lock, directory: Path) -> None:
        self.lock = lock
        self.directory = directory
        self._named: dict[str, list[LockedPackage]] = {}
        for package in lock.packages:
            self._named.setdefault(package.sha256, []).append(package)
        self._todo: queue.PriorityQueue[tuple[int, str, Path]] = queue.PriorityQueue()
        self._changed = threading.Condition()
        self._stanzas: dict[str, str] = {}
        self._ready: set[str] = set()
        self._failure: BaseException | None = None
        self._stop = threading.Event()

    def path(self, name: str) -> Path:
        """Where the uncompressed package lies once `wait` has returned."""
        return self.directory / f"{name}.deb"

    def wait(self, names: Iterable[str]) -> None:
        """Return when all `names` are uncompressed."""
        wanted = set(names)
        self._until(lambda: wanted <= self._ready)

    def stanzas(self) -> dict[str, str]:
        """The control data of every package, by name. Known as soon as all are downloaded."""
        self._until(lambda: len(self._stanzas) == len(self.lock.packages))
        return self._stanzas

    @contextlib.contextmanager
    def running(self, download: Download, monitor: Monitor) -> Iterator[Supply]:
        """Fetch and uncompress in the background while the context lasts. Leaving it early stops both."""
        crew = range(os.cpu_count() or 1)
        # Daemons: an interrupt that strikes between two lines here must not leave the program waiting for them.
        threads = [threading.Thread(target=self._guarded, args=(self._fetch, download, monitor), daemon=True)]
        threads += [threading.Thread(target=self._guarded, args=(self._work,), daemon=True) for _ in crew]
        try:
            for thread in threads:
                thread.start()
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                if thread.ident is not None:
                    thread.join()

    def _until(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            # A wait without a limit cannot be interrupted by Ctrl-C on every platform.
            while not condition() and self._failure is None:
                self._changed.wait(1.0)
            if self._failure is not None:
                raise self._failure

    def _guarded(self, work: Callable[..., None], *arguments: object) -> None:
        try:
            work(*arguments)
        except _Stopped:
            pass
        except BaseException as error:
            with self._changed:
                self._failure = self._failure or error
                self._changed.notify_all()
            self._stop.set()

    def _fetch(self, download: Download, monitor: Monitor) -> None:
        total = sum(blob.size for blob in {package.blob for package in self.lock.packages})
        with monitor.step("fetch", total=total, unit="bytes") as step:
            self._download(download, step.advance)

    def _download(self, download: Download, advance: Callable[[int], None]) -> None:
        def counted(amount: int) -> None:
            self._check()
            advance(amount)

        def arrived(blob: Blob, path: Path) -> None:
            self._check()
            for package in self._named[blob.digest]:
                stanza = control(path)
                with self._changed:
                    self._stanzas[package.name] = stanza
                    self._changed.notify_all()
                self._todo.put((_rank(package), package.name, path))

        for essential in (True, False):
            some = [item for item in self.lock.packages if item.essential is essential]
            if some:
                download([(item.url, item.blob) for item in some], done=arrived, advance=counted)

    def _work(self) -> None:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        while not self._stop.is_set():
            try:
                _, name, path = self._todo.get(timeout=_POLL)
            except queue.Empty:
                continue
            uncompress(path, self.path(name))
            with self._changed:
                self._ready.add(name)
                self._changed.notify_all()

    def _check(self) -> None:
        if self._stop.is_set():
            raise _Stopped


def batches(packages: Iterable[LockedPackage], count: int) -> list[list[str]]:
    """Names, in the order given, in at most `count` groups of about the same size. The cut follows from the packages
    alone, never from what happens to be ready, so that builds stay the same."""
    ordered = list(packages)
    share = sum(item.size for item in ordered) / count or 1
    groups: list[list[str]] = [[] for _ in range(count)]
    done = 0
    for item in ordered:
        groups[min(int(done / share), count - 1)].append(item.name)
        done += item.size
    return [group for group in groups if group]
