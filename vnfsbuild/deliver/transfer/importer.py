"""Takes versions in from `.vnfs` files, which may come from anybody.

Read once, front to back, in bounded memory. Only regular files, with exactly the names and sizes that the manifest
calls for and in the order of `layout`, pass; each blob is hashed before it gets its name. Paths from the
archive are compared, never opened.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator
from typing import IO

from vnfsbuild.deliver.transfer import layout
from vnfsbuild.deliver.transfer.intake import Offer, admission, check_config, enter
from vnfsbuild.errors import TrustError, UsageError
from vnfsbuild.model import Blob, check_digest, one_line
from vnfsbuild.progress import Monitor, Step
from vnfsbuild.store.capsules import INDEX_NAME, LAYOUT, LAYOUT_NAME, REF_NAME, Store
from vnfsbuild.store.cas import CHUNK
from vnfsbuild.store.manifest import MANIFEST, Capsule

_MAX_DOCUMENT = 4 << 20
_RECORD = 10240  # other writers of tar fill their last record up to this size
_HINT = "the file is damaged or was not written by vnfs export; nothing was taken in"


def read_vnfs(store: Store, source: IO[bytes], *, name: str | None = None, monitor: Monitor) -> Capsule:
    """Take in the version that a `.vnfs` file holds and return it.

    It keeps its name, number and digest; `name` makes it the next version of another name. Raises TrustError for a
    file that is damaged, cut off or not what it says, Conflict when the number is taken by other content, NoSpace.
    After an error the store holds what it held before.
    """
    archive = _Archive(source)
    if archive.document(LAYOUT_NAME) != LAYOUT:
        raise TrustError("the file is not an OCI image layout of version 1.0.0", _HINT)
    manifest, reference = _named(archive.document(INDEX_NAME))
    data = archive.document(layout.blob_name(manifest), size=manifest.size)
    offer = Offer.examine(data)
    if offer.blob != manifest:
        raise TrustError(f"the manifest in the file is not {manifest.digest}", _HINT)
    total = sum(blob.size for blob in offer.blobs)
    with (
        monitor.step(f"import {one_line(reference)}", total=total, unit="bytes") as step,
        admission(store, offer, resumable=False),
    ):
        for blob in offer.blobs:
            archive.blob(store, blob, step)
            if blob == offer.config:
                said = offer.capsule(check_config(store, offer, name=name)).reference
                if said != reference:
                    raise TrustError(f"the file says it holds {one_line(reference)}, but it is {said}", _HINT)
        archive.finish()
        return enter(store, offer, name=name)


def _named(data: bytes) -> tuple[Blob, str]:
    """The one manifest that `index.json` names, and the reference it gives it."""
    try:
        (item,) = json.loads(data)["manifests"]
        size = item["size"]
        if item["mediaType"] != MANIFEST or type(size) is not int or not 0 < size <= _MAX_DOCUMENT:
            raise ValueError("its manifest is of another kind or size")
        return Blob(check_digest(str(item["digest"])), size), str(item["annotations"][REF_NAME])
    except (UsageError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise TrustError(f"{INDEX_NAME} in the file does not name one capsule: {error}", _HINT) from error


class _Archive:
    """A tar read front to back, whose every member is known before it is met."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source

    def document(self, name: str, *, size: int | None = None) -> bytes:
        """The content of a small member."""
        found = self._open(name, size)
        if found > _MAX_DOCUMENT:
            raise TrustError(f"{name} in the file is {found} bytes long", _HINT)
        data = self._read(found, name)
        self._skip_padding(found, name)
        return data

    def blob(self, store: Store, blob: Blob, step: Step) -> None:
        """Store a blob, or only check it when the store has it undamaged."""
        name = layout.blob_name(blob)
        self._open(name, blob.size)
        if store.blobs.sound(blob):
            digest = hashlib.sha256()
            for chunk in self._chunks(blob.size, name, step):
                digest.update(chunk)
            if f"sha256:{digest.hexdigest()}" != blob.digest:
                raise TrustError(f"{name} in the file does not have the content it is named by", _HINT)
        else:
            with store.blobs.receive() as incoming:
                for chunk in self._chunks(blob.size, name, step):
                    incoming.write(chunk)
                incoming.commit(blob)
        self._skip_padding(blob.size, name)

    def finish(self) -> None:
        """Nothing but the end mark may follow."""
        rest = self._source.read(_RECORD + len(layout.END) + 1)
        if len(rest) < len(layout.END):
            raise TrustError("the file is cut off before its end mark", _HINT)
        if rest.strip(b"\0") or len(rest) > _RECORD + len(layout.END):
            raise TrustError("the file goes on after its end", _HINT)

    def _open(self, name: str, size: int | None) -> int:
        block = self._read(layout.BLOCK, name)
        try:
            member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.TarError, ValueError) as error:
            raise TrustError(f"this is not a .vnfs file: where {name} should begin is no tar header", _HINT) from error
        if member.type != tarfile.REGTYPE or member.name != name:
            raise TrustError(f"the file has {one_line(member.name)} (type {member.type!r}) instead of {name}", _HINT)
        if member.size < 0 or (size is not None and member.size != size):
            raise TrustError(f"{name} in the file is {member.size} bytes long, not {size}", _HINT)
        return member.size

    def _chunks(self, size: int, name: str, step: Step) -> Iterator[bytes]:
        while size:
            chunk = self._read(min(size, CHUNK), name)
            size -= len(chunk)
            step.advance(len(chunk))
            yield chunk

    def _read(self, size: int, name: str) -> bytes:
        data = self._source.read(size)
        while len(data) < size:  # a pipe gives what it has
            more = self._source.read(size - len(data))
            if not more:
                raise TrustError(f"the file is cut off within {name}", _HINT)
            data += more
        return data

    def _skip_padding(self, size: int, name: str) -> None:
        if any(self._read(layout.padding(size), name)):
            raise TrustError(f"the file has stray bytes after {name}", _HINT)
