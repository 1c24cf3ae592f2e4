"""Writes a version to a portable file. Reads the store only; never leaves half a file under the name asked for."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import IO

from vnfsbuild.deliver.transfer import layout
from vnfsbuild.errors import Conflict, HostError, NoSpace, TrustError
from vnfsbuild.host.fs import atomic_file, free_bytes, space_errors
from vnfsbuild.model import Blob
from vnfsbuild.progress import Monitor, Step
from vnfsbuild.store.capsules import INDEX_NAME, LAYOUT, LAYOUT_NAME, Store
from vnfsbuild.store.cas import CHUNK, LocalBlobs
from vnfsbuild.store.manifest import Capsule


def default_name(capsule: Capsule) -> str:
    """NAME-VERSION.vnfs"""
    return f"{capsule.config.name}-{capsule.config.version}.vnfs"


def write_vnfs(store: Store, capsule: Capsule, target: Path, *, force: bool, monitor: Monitor) -> int:
    """Write the `.vnfs` file of a version to `target` and return its size in bytes.

    The file appears complete, durable and with every blob checked against its digest, or not at all. Raises Conflict
    when `target` exists and `force` is not given (or it is no regular file), TrustError when a blob of the store is
    damaged, NotFound when one is missing, NoSpace.
    """
    _check_target(target, force=force)
    size = layout.file_size(capsule)
    if free_bytes(target.parent) < size:
        raise NoSpace(f"{target.parent} has no room for the {size} bytes of {target.name}", "free some")
    try:
        with space_errors(target), atomic_file(target) as out:
            stream_vnfs(store, capsule, out, monitor=monitor)
    except PermissionError as error:
        raise HostError(f"may not write {target}", "choose another file") from error
    return size


def stream_vnfs(store: Store, capsule: Capsule, out: IO[bytes], *, monitor: Monitor) -> None:
    """Write the bytes of the `.vnfs` file of a version to a pipe or an open file.

    Every blob is checked as it passes. Raises TrustError or NotFound as write_vnfs does; what was written until then
    lacks its end, and no import takes it.
    """
    manifest = capsule.manifest()
    with monitor.step(f"export {capsule.reference}", total=capsule.size, unit="bytes") as step:
        _member(out, LAYOUT_NAME, LAYOUT)
        _member(out, INDEX_NAME, layout.index(capsule))
        _member(out, layout.blob_name(capsule.manifest_blob), manifest)
        for blob in layout.ordered_blobs(manifest):
            _blob(out, store.blobs, blob, step)
        out.write(layout.END)


def _check_target(target: Path, *, force: bool) -> None:
    if not target.parent.is_dir():
        raise Conflict(f"there is no directory {target.parent}", f"mkdir -p {target.parent}")
    if not target.exists() and not target.is_symlink():
        return
    if not target.is_file():
        raise Conflict(f"{target} exists and is not a regular file", "choose another name")
    if not force:
        raise Conflict(f"{target} exists", "choose another name, or --force to replace it")


def _member(out: IO[bytes], name: str, data: bytes) -> None:
    out.write(layout.header(name, len(data)) + data + bytes(layout.padding(len(data))))


def _blob(out: IO[bytes], blobs: LocalBlobs, blob: Blob, step: Step) -> None:
    out.write(layout.header(layout.blob_name(blob), blob.size))
    digest, size = hashlib.sha256(), 0
    with blobs.open(blob) as source:
        while chunk := source.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
            out.write(chunk)
            step.advance(len(chunk))
    if size != blob.size or f"sha256:{digest.hexdigest()}" != blob.digest:
        raise TrustError(f"the blob {blob.digest} is damaged in the store", "vnfs verify; nothing was written")
    out.write(bytes(layout.padding(size)))
