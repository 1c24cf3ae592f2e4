"""What may be handed out: blobs that the store's index reaches, and the documents made from them. Nothing else.

The index is read again when it changes. A version that is damaged is left out; the others go on being served.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path

from vnfsbuild.errors import NotFound, TrustError
from vnfsbuild.model import Reference
from vnfsbuild.serve.boot import node_files, plan
from vnfsbuild.store.capsules import Store
from vnfsbuild.store.cas import digest_of
from vnfsbuild.store.manifest import Capsule


@dataclass(frozen=True, slots=True)
class Served:
    """Bytes by digest: in a file, or (small documents) in memory."""

    digest: str
    size: int
    path: Path | None = None
    data: bytes = b""


@dataclass(slots=True)
class _View:
    stamp: tuple[int, int, int]
    capsules: tuple[Capsule, ...] = ()
    damaged: tuple[str, ...] = ()
    served: dict[str, Served] = field(default_factory=dict)


class Catalog:
    """The store as nodes see it. Calls read files: not for an event loop's own thread."""

    def __init__(self, store: Store, ssh_keys: tuple[str, ...] = ()) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._view = _View((0, 0, 0))
        files = node_files(ssh_keys)
        self.files = _document(files) if files else None

    def find(self, digest: str) -> Served:
        """What is served under a digest. Raises NotFound."""
        if self.files and digest == self.files.digest:
            return self.files
        try:
            return self._current().served[digest]
        except KeyError:
            raise NotFound(f"{digest} is not served here") from None

    def capsule(self, reference: Reference) -> Capsule:
        """The version a reference means now. Raises NotFound, or TrustError when it is damaged."""
        return self._store.get(reference)

    def capsules(self) -> tuple[Capsule, ...]:
        return self._current().capsules

    def damaged(self) -> tuple[str, ...]:
        """Versions that cannot be read, one line each."""
        return self._current().damaged

    def _current(self) -> _View:
        try:
            info = (self._store.root / "index.json").stat()
            stamp = (info.st_mtime_ns, info.st_size, info.st_ino)
        except FileNotFoundError:
            stamp = (0, 0, 0)
        with self._lock:
            if stamp != self._view.stamp:
                self._view = self._read(stamp)
            return self._view

    def _read(self, stamp: tuple[int, int, int]) -> _View:
        capsules, damaged = [], []
        for name in self._store.names():
            for version in self._store.versions(name):
                try:
                    capsules.append(self._store.get(Reference(name, version=version)))
                except (NotFound, TrustError) as error:
                    damaged.append(f"{name}:{version}: {error}")
        view = _View(stamp, tuple(capsules), tuple(damaged))
        for capsule in capsules:
            for blob in (*capsule.blobs, capsule.manifest_blob):
                view.served[blob.digest] = Served(blob.digest, blob.size, self._store.blobs.path(blob))
            document = _document(plan(capsule))
            view.served[document.digest] = document
        return view


def _document(data: bytes) -> Served:
    return Served(digest_of(data), len(data), data=data)
