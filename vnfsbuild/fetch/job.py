"""One file at a time: from the cache, or downloaded, resumed and verified."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO

from vnfsbuild.errors import NetworkError, TrustError
from vnfsbuild.fetch.wire import CHUNK, Cancelled, Transient, Wire
from vnfsbuild.host.fs import space_errors
from vnfsbuild.host.http import backoff
from vnfsbuild.model import Blob
from vnfsbuild.store.cas import LocalBlobs


class Job:
    """Downloads into `blobs` that are stopped together by `stop`. A file is tried `attempts` times without progress."""

    def __init__(self, blobs: LocalBlobs, wire: Wire, stop: threading.Event, attempts: int) -> None:
        self.wire = wire
        self._blobs = blobs
        self._stop = stop
        self._attempts = attempts

    # ---- a file whose content is known

    def verified(self, url: str, blob: Blob, advance: Callable[[int], None]) -> Path:
        """The path of `blob`, from the cache (where its content is checked anew: disks rot) or from `url`."""
        path = self._blobs.path(blob)
        if self._blobs.sound(blob):
            advance(blob.size)
            return path
        with space_errors(path), self._blobs.unfinished(blob, self._wait) as part:
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
                part.truncate(0)
                self._fill(url, blob, part, progress)
                self._publish(url, blob, part)
        return path

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
        while (have := os.fstat(part.fileno()).st_size) < blob.size:
            progress.reached(have)
            try:
                self._append(url, blob, part, have, progress)
                failures = 0
            except Transient as error:
                if os.fstat(part.fileno()).st_size - have >= CHUNK:
                    failures = 0
                failures += 1
                self._pause(url, failures, error)
        progress.reached(blob.size)

    def _append(self, url: str, blob: Blob, part: IO[bytes], have: int, progress: _Progress) -> None:
        with self.wire.open(url, have) as (start, total, chunks):
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
            except Transient as error:
                raise Transient(f"broke off after {position} of {blob.size} bytes: {error}") from error.__cause__
        if position < blob.size:
            raise Transient(f"broke off after {position} of {blob.size} bytes")

    # ---- a file whose content is not known before

    def unnamed(self, url: str, limit: int) -> Path:
        """Download `url` anew and return where it lies, named by what it turned out to be."""
        failures = 0
        while True:
            try:
                return self._blobs.path(self._whole(url, limit))
            except Transient as error:
                failures += 1
                self._pause(url, failures, error)

    def _whole(self, url: str, limit: int) -> Blob:
        with self._blobs.receive() as incoming, self.wire.open(url, 0) as (_start, total, chunks):
            size = 0
            for chunk in chunks:
                size += len(chunk)
                if size > limit:
                    raise TrustError(f"{url} is larger than the {limit} bytes that it may be", "use another mirror")
                incoming.write(chunk)
            if total is not None and size < total:
                raise Transient(f"broke off after {size} of {total} bytes")
            return incoming.commit()

    def _pause(self, url: str, failures: int, error: Transient) -> None:
        if failures >= self._attempts:
            raise NetworkError(
                f"could not get {url}: {error} (tried {failures} times)",
                "look at the network and the mirror, then run it again: what was downloaded is kept",
            ) from error.__cause__
        self._wait(max(backoff(failures), error.wait))

    def _wait(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise Cancelled


class _Progress:
    """Counts bytes forward only, so that a restart does not take back what a bar has shown."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance = advance
        self._mark = 0

    def reached(self, position: int) -> None:
        if position > self._mark:
            self._advance(position - self._mark)
            self._mark = position
