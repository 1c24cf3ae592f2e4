"""Content-addressed blobs, as the OCI image layout keeps them: `blobs/sha256/<hex>`.

Owns verification: a blob becomes visible only complete, durable and with the digest it is named by. Knows nothing
about what blobs mean.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from vnfsbuild.errors import NotFound, TrustError
from vnfsbuild.host.fs import make_directory, space_errors, sync_directory, work_file
from vnfsbuild.model import Blob

CHUNK = 1 << 20
_PAUSE = 0.05


class LocalBlobs:
    """Blobs in a directory. Safe for any number of processes at once: equal names have equal bytes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._sha256 = root / "sha256"
        self.ingest = root.parent / "ingest"

    def path(self, blob: Blob) -> Path:
        """Where the blob is, or would be."""
        return self._sha256 / blob.hex

    def has(self, blob: Blob) -> bool:
        """Whether the blob is there with the size it should have. Content was verified when it was put."""
        try:
            return self.path(blob).stat().st_size == blob.size
        except FileNotFoundError:
            return False

    def sound(self, blob: Blob) -> bool:
        """Whether the blob is there and has the content it is named by; reads all of it."""
        return self.has(blob) and hash_file(self.path(blob)) == blob

    def open(self, blob: Blob) -> IO[bytes]:
        """Open for reading. Raises NotFound."""
        try:
            return open(self.path(blob), "rb")
        except FileNotFoundError:
            raise NotFound(f"the blob {blob.digest} is not in {self.root}", "vnfs verify") from None

    def read(self, blob: Blob) -> bytes:
        """The whole blob, checked against its digest. For small ones: manifests, configurations, tables of contents."""
        with self.open(blob) as source:
            data = source.read()
        if digest_of(data) != blob.digest:
            raise TrustError(f"the blob {blob.digest} is damaged", "vnfs verify names everything that is")
        return data

    def put(self, source: IO[bytes], *, expect: Blob | None = None) -> Blob:
        """Store what `source` yields. Raises TrustError when it is not `expect`; then nothing was stored."""
        with self.receive() as incoming:
            for chunk in iter(lambda: source.read(CHUNK), b""):
                incoming.write(chunk)
            return incoming.commit(expect)

    def put_bytes(self, data: bytes) -> Blob:
        """Store bytes and return what they are named by."""
        with self.receive() as incoming:
            incoming.write(data)
            return incoming.commit()

    def adopt(self, path: Path, *, expect: Blob | None = None) -> Blob:
        """Take over a file that lies on the same file system, hashing it on the way in; `path` is gone afterwards."""
        blob = hash_file(path)
        _check(blob, expect, str(path))
        with open(path, "rb+") as stream:
            os.fsync(stream.fileno())
        self._publish(path, blob)
        return blob

    @contextmanager
    def receive(self) -> Iterator[Incoming]:
        """Take a blob in piece by piece; what was not committed is removed."""
        make_directory(self.ingest)
        with space_errors(self.ingest), work_file(self.ingest, "put") as (temporary, out):
            yield Incoming(self, temporary, out)

    def partial(self, blob: Blob) -> Path:
        """Where an interrupted download of `blob` waits to be resumed. Adopt it when it is whole."""
        make_directory(self.ingest)
        return self.ingest / f"{blob.hex}.part"

    @contextmanager
    def unfinished(self, blob: Blob, wait: Callable[[float], None]) -> Iterator[IO[bytes] | None]:
        """The `partial` file of `blob`, open for going on with and ours alone, never longer than the blob; None when
        somebody else has just completed it.

        While another process or thread holds it, `wait` is called with seconds, and ends the waiting by raising.
        """
        path = self.partial(blob)
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            with open(descriptor, "rb+", buffering=0) as part:
                while not _locked(part):
                    wait(_PAUSE)
                # Whoever held it may have made a blob of it, or removed it: then the name leads elsewhere.
                same = _leads_to(path, part)
                if self.sound(blob):
                    if same:
                        path.unlink()
                    yield None
                    return
                if same:
                    if os.fstat(part.fileno()).st_size > blob.size:
                        part.truncate(0)
                    yield part
                    return

    def remove(self, blob: Blob) -> None:
        """Forget a blob; it is no error if it was not there."""
        with suppress(FileNotFoundError):
            self.path(blob).unlink()

    def all(self) -> Iterator[Blob]:
        """Every blob that is there, by name and size (content unread)."""
        if self._sha256.is_dir():
            for entry in sorted(os.scandir(self._sha256), key=lambda item: item.name):
                yield Blob(f"sha256:{entry.name}", entry.stat().st_size)

    def _publish(self, temporary: Path, blob: Blob) -> None:
        if not self._sha256.is_dir():
            make_directory(self._sha256)
            sync_directory(self.root)
            sync_directory(self.root.parent)
        temporary.chmod(0o444)
        temporary.rename(self.path(blob))
        sync_directory(self._sha256)


class Incoming:
    """A blob on its way in; made by LocalBlobs.receive."""

    def __init__(self, store: LocalBlobs, path: Path, out: IO[bytes]) -> None:
        self._store = store
        self._path = path
        self._out = out
        self._hash = hashlib.sha256()
        self._size = 0

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self._size += len(data)
        return self._out.write(data)

    def commit(self, expect: Blob | None = None) -> Blob:
        """Make the blob durable and visible. Raises TrustError, storing nothing, when it is not `expect`."""
        blob = Blob(f"sha256:{self._hash.hexdigest()}", self._size)
        _check(blob, expect, "what arrived")
        self._out.flush()
        os.fsync(self._out.fileno())
        self._store._publish(self._path, blob)
        return blob


def _check(blob: Blob, expect: Blob | None, what: str) -> None:
    if expect and blob != expect:
        raise TrustError(
            f"{what} is {blob.digest} ({blob.size} bytes), not {expect.digest} ({expect.size} bytes)",
            "the source is damaged or was tampered with; nothing was stored",
        )


def _locked(stream: IO[bytes]) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _leads_to(path: Path, stream: IO[bytes]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(stream.fileno()))
    except FileNotFoundError:
        return False


def digest_of(data: bytes) -> str:
    """sha256:<hex> of `data`."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def hash_file(path: Path) -> Blob:
    """Digest and size of a file's content."""
    with open(path, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return Blob(f"sha256:{digest}", stream.tell())
