"""Sends versions to OCI registries and fetches them: only what the other side misses, resumable, verified.

A registry is a stranger. What it sends is checked against the digest asked for before it becomes visible; what a
version is, only its manifest says, and `intake` decides whether that may enter.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import IO, TypeVar

from vnfsbuild.deliver.transfer.intake import Offer, admission, check_config, enter
from vnfsbuild.deliver.transfer.oci_client import Repository
from vnfsbuild.deliver.transfer.remote import Remote, find_credentials
from vnfsbuild.deliver.transfer.transport import Http, Interrupted
from vnfsbuild.errors import NetworkError, NotFound, TrustError, UsageError
from vnfsbuild.host.fs import space_errors
from vnfsbuild.model import Blob
from vnfsbuild.progress import Monitor, Step
from vnfsbuild.store.capsules import Store
from vnfsbuild.store.manifest import Capsule

_PARALLEL = 3
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Moved:
    """What a transfer came to. `bytes` and `blobs` went over the wire, `skipped` blobs were on the other side."""

    capsule: Capsule
    reference: str
    bytes: int
    blobs: int
    skipped: int


class _Count:
    """Bytes that went over the wire, from any thread, shown as they go."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self._lock = Lock()
        self.bytes = 0

    def add(self, amount: int) -> None:
        with self._lock:
            self.bytes += amount
        self._step.advance(amount)


def push(
    store: Store,
    capsule: Capsule,
    remote: Remote,
    *,
    plain_http: bool = False,
    environ: Mapping[str, str],
    monitor: Monitor,
) -> Moved:
    """Send a version to a registry under the remote's tag; without one, under its number, and as `latest` too when
    it is the newest here.

    Blobs that the registry has are not sent. The tag appears after everything it refers to. Raises NetworkError after
    retries, TrustError when the registry or the store has other bytes than it should, NotFound for a missing blob.
    """
    if remote.digest:
        raise UsageError(f"{remote}: a push goes to a tag, not to a digest", "leave @sha256:… away")
    blobs = tuple(dict.fromkeys(capsule.blobs))
    _check_complete(store, capsule, blobs)
    with _repository(remote, plain_http=plain_http, environ=environ) as repository:
        present = _each(repository.http, [partial(repository.has, blob) for blob in blobs])
        missing = [blob for blob, there in zip(blobs, present, strict=True) if not there]
        total = sum(blob.size for blob in missing)
        with monitor.step(f"push {capsule.reference}", total=total, unit="bytes") as step:
            count = _Count(step)
            jobs = [partial(repository.upload, blob, store.blobs.path(blob), count.add) for blob in missing]
            _each(repository.http, jobs)
        tags = [remote.tag] if remote.tag else _tags(store, capsule)
        for tag in tags:
            repository.put_manifest(tag, capsule.manifest())
    named = Remote(remote.host, remote.repository, tags[0])
    return Moved(capsule, str(named), count.bytes, len(missing), len(blobs) - len(missing))


def _tags(store: Store, capsule: Capsule) -> list[str]:
    newest = store.versions(capsule.config.name)[-1:] == (capsule.config.version,)
    return [str(capsule.config.version), *(["latest"] if newest else [])]


def _check_complete(store: Store, capsule: Capsule, blobs: Sequence[Blob]) -> None:
    for blob in blobs:
        if not store.blobs.has(blob):
            raise NotFound(f"{capsule.reference} misses its blob {blob.digest}", "vnfs verify")


def pull(
    store: Store,
    remote: Remote,
    *,
    name: str | None = None,
    plain_http: bool = False,
    environ: Mapping[str, str],
    monitor: Monitor,
) -> Moved:
    """Fetch a version from a registry into the store, under the name and number it was published with (or as the
    next version of `name`).

    Blobs that are here undamaged are not fetched; an interrupted download goes on where it stopped, in this run or
    the next. Raises NetworkError after retries, TrustError for bytes that are not what was promised (nothing of them
    stays), Conflict when the number is taken by other content, NoSpace.
    """
    with _repository(remote, plain_http=plain_http, environ=environ) as repository:
        offer = Offer.examine(repository.manifest())
        missing = [blob for blob in offer.blobs if not store.blobs.sound(blob)]
        total = sum(blob.size for blob in missing)
        with (
            monitor.step(f"pull {remote}", total=total, unit="bytes") as step,
            admission(store, offer, resumable=True),
        ):
            count = _Count(step)
            fetch = partial(_fetch, repository, store, count)
            if offer.config in missing:
                fetch(offer.config)
            check_config(store, offer, name=name)
            _each(repository.http, [partial(fetch, blob) for blob in missing if blob != offer.config])
            capsule = enter(store, offer, name=name)
    return Moved(capsule, capsule.reference, count.bytes, len(missing), len(offer.blobs) - len(missing))


def _fetch(repository: Repository, store: Store, count: _Count, blob: Blob) -> None:
    """Download one blob, going on from what an earlier attempt left; gives up after failures without progress."""
    with space_errors(store.root), store.blobs.unfinished(blob, repository.http.sleep) as out:
        if out is None:
            return
        part = store.blobs.partial(blob)
        try:
            _fill(repository, blob, out, count)
            store.blobs.adopt(part, expect=blob)
        except TrustError:
            part.unlink()
            raise


def _fill(repository: Repository, blob: Blob, out: IO[bytes], count: _Count) -> None:
    failures = 0
    while (offset := out.seek(0, os.SEEK_END)) < blob.size:
        try:
            _receive(repository, blob, out, offset, count)
        except NetworkError as error:
            failures = 0 if out.tell() > offset else failures + 1
            if failures > repository.http.retries:
                raise
            repository.http.pause(failures, error)


def _receive(repository: Repository, blob: Blob, out: IO[bytes], offset: int, count: _Count) -> None:
    with repository.read(blob, offset) as (start, pieces):
        out.seek(start)
        out.truncate()
        for piece in pieces:
            out.write(piece)
            count.add(len(piece))
            if repository.http.stop.is_set():
                raise Interrupted


@contextmanager
def _repository(remote: Remote, *, plain_http: bool, environ: Mapping[str, str]) -> Iterator[Repository]:
    scheme = "http" if plain_http or remote.is_local else "https"
    http = Http(f"{scheme}://{remote.host}", credentials=find_credentials(remote.host, environ))
    try:
        yield Repository(remote, http)
    finally:
        http.close()


def _each(http: Http, jobs: Sequence[Callable[[], T]]) -> list[T]:
    """Run jobs a few at a time; the first failure (or Ctrl-C) stops the others and is raised."""
    with ThreadPoolExecutor(_PARALLEL) as pool:
        running: list[Future[T]] = [pool.submit(job) for job in jobs]
        try:
            wait(running, return_when=FIRST_EXCEPTION)
            for future in running:
                if future.done() and not future.cancelled() and (error := future.exception()):
                    raise error
        except BaseException:
            http.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        return [future.result() for future in running]
