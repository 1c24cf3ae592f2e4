"""The packages of a lock on their way into the workspace: downloaded, then uncompressed, while others already unpack.

dpkg would decompress each package on one core, after the one before. Here all cores decompress whenever dpkg leaves
them idle, and what it needs first, first.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from vnfsbuild.family import Download
from vnfsbuild.family.deb.archive import control, uncompress
from vnfsbuild.family.deb.order import Relations
from vnfsbuild.host.interrupt import resource
from vnfsbuild.lockfile import Lock, LockedPackage
from vnfsbuild.model import Blob
from vnfsbuild.progress import Monitor

_NICENESS = 10
_POLL = 0.1
# A package this large takes one core as long as all the others take together: it must not be the last to begin.
_GIANT = 32 << 20


class _Stopped(Exception):
    """Nobody waits for the packages any more."""


class Supply:
    """Packages by name. `wait` and `relations` block until they are there, and raise what went wrong on the way."""

    def __init__(self, lock: Lock, directory: Path) -> None:
        self.lock = lock
        self.directory = directory
        self._named: dict[str, list[LockedPackage]] = {}
        for package in lock.packages:
            self._named.setdefault(package.sha256, []).append(package)
        self._todo: dict[LockedPackage, Path] = {}
        self._position: dict[str, int] = {}
        self._changed = threading.Condition()
        self._stanzas: dict[str, str] = {}
        self._relations: Relations | None = None
        self._ready: set[str] = set()
        self._failure: BaseException | None = None
        self._stop = threading.Event()

    def path(self, name: str) -> Path:
        """Where the uncompressed package lies, from `wait` until `drop`."""
        return self.directory / f"{name}.deb"

    def wait(self, names: Iterable[str]) -> None:
        """Return when all `names` are uncompressed."""
        wanted = set(names)
        self._until(lambda: wanted <= self._ready)

    def drop(self, names: Iterable[str]) -> None:
        """Forget uncompressed packages that are unpacked: their memory is wanted for what comes."""
        for name in names:
            self.path(name).unlink(missing_ok=True)

    def relations(self) -> Relations:
        """Who needs whom. Known as soon as all packages are downloaded."""
        self._until(lambda: self._relations is not None)
        assert self._relations is not None
        return self._relations

    @resource
    def running(self, download: Download, monitor: Monitor) -> Iterator[Supply]:
        """Fetch and uncompress in the background while the context lasts. Leaving it early stops both."""
        crew = range(os.cpu_count() or 1)
        # Daemons: a program that ends without leaving the context does not wait for them.
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
                    self._todo[package] = path
                    self._changed.notify_all()

        for essential in (True, False):
            some = [item for item in self.lock.packages if item.essential is essential]
            if some:
                download([(item.url, item.blob) for item in some], done=arrived, advance=counted, cancel=self._stop)
        relations = Relations.read(self._stanzas)
        unpacked = relations.ordered(self.lock.packages)
        with self._changed:
            self._position = {package.name: number for number, package in enumerate(unpacked)}
            self._relations = relations
            self._changed.notify_all()

    def _work(self) -> None:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        while not self._stop.is_set():
            with self._changed:
                if not self._todo:
                    self._changed.wait(_POLL)
                    continue
                package = min(self._todo, key=self._rank)
                path = self._todo.pop(package)
            uncompress(path, self.path(package.name))
            with self._changed:
                self._ready.add(package.name)
                self._changed.notify_all()

    def _rank(self, package: LockedPackage) -> tuple[int, int, str]:
        """What is uncompressed first: what must run first, then giants, then in the order of unpacking; as long as
        that is unknown, small ones, on which others depend."""
        kind = 0 if package.essential else 1 if package.size >= _GIANT else 2
        return kind, self._position.get(package.name, package.size), package.name

    def _check(self) -> None:
        if self._stop.is_set():
            raise _Stopped
