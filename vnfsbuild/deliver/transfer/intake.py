"""The gate through which versions enter a store from outside, whichever way they came.

A version is offered as its manifest. Its form and the sizes it claims are checked before anything is moved, its
configuration before the large parts, its table of contents before it is entered. What a refused version brought along
is taken back. Nothing of a capsule is ever run here.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from vnfsbuild.deliver.transfer.layout import ordered_blobs
from vnfsbuild.errors import Conflict, NetworkError, NoSpace, NotFound, TrustError, VnfsError
from vnfsbuild.host.fs import free_bytes, make_directory
from vnfsbuild.host.interrupt import resource
from vnfsbuild.model import Blob, Reference, check_name
from vnfsbuild.store.capsules import Store
from vnfsbuild.store.cas import digest_of
from vnfsbuild.store.manifest import INITRD, KERNEL, LAYER, SBOM, TOC, Capsule, Config, manifest_parts
from vnfsbuild.store.toc import Toc

MAX_CONFIG = 1 << 20
# Parts that are read into memory, or have no reason to be large.
_LIMITS = {TOC: 64 << 20, SBOM: 256 << 20}


@dataclass(frozen=True, slots=True)
class Offer:
    """A version that somebody hands us. `blobs` are in the order in which they are wanted, each once."""

    manifest: bytes
    config: Blob
    parts: Mapping[str, tuple[Blob, ...]]
    blobs: tuple[Blob, ...]

    @property
    def blob(self) -> Blob:
        return Blob(digest_of(self.manifest), len(self.manifest))

    @classmethod
    def examine(cls, manifest: bytes) -> Offer:
        """Read a manifest that may come from anybody. Raises TrustError when it is not an acceptable capsule's."""
        config, parts = manifest_parts(manifest)
        for kind, limit in _LIMITS.items():
            if any(blob.size > limit for blob in parts[kind]):
                raise TrustError(f"the manifest claims a part of more than {limit} bytes: {kind}")
        if config.size > MAX_CONFIG:
            raise TrustError(f"the manifest claims a configuration of {config.size} bytes")
        return cls(manifest, config, parts, ordered_blobs(manifest))

    def capsule(self, config: Config) -> Capsule:
        """The version that this would be. Raises TrustError unless the manifest is in the form that vnfs writes."""
        parts = self.parts
        made = Capsule(
            config, self.config, parts[LAYER], parts[KERNEL][0], parts[INITRD][0], parts[TOC][0], parts[SBOM][0]
        )
        if made.manifest() != self.manifest:
            raise TrustError(f"the manifest {self.blob.digest} is not in the form that vnfs writes")
        return made


def check_config(store: Store, offer: Offer, *, name: str | None = None) -> Config:
    """Read the configuration of an offer, whose blob has arrived.

    Raises TrustError when it does not belong to the manifest, Conflict when the number it bears is taken by other
    content (unless it is to be entered under another `name`).
    """
    config = Config.from_bytes(store.blobs.read(offer.config))
    capsule = offer.capsule(config)
    if name is None:
        # One that is damaged is compared when this one is entered, by what the index says of it.
        with suppress(NotFound, TrustError):
            there = store.get(Reference(config.name, version=config.version))
            if there.digest != capsule.digest:
                raise Conflict(
                    f"{capsule.reference} is here already with other content ({there.digest})",
                    f"what came is {capsule.digest}; --name takes it in under another name",
                )
    return config


@resource
def admission(store: Store, offer: Offer, *, resumable: bool) -> Iterator[None]:
    """Move the blobs of an offer within this context; when it fails, what came is removed unless something uses it.

    Where the transfer is `resumable`, a network failure or an interruption leaves complete blobs for the next attempt
    to build on. Raises NoSpace before anything is moved when it would not fit.
    """
    store.names()  # a damaged index is told before anything is moved
    missing = [blob for blob in (offer.blob, *offer.blobs) if not store.blobs.has(blob)]
    make_directory(store.root)
    wanted = sum(blob.size for blob in missing)
    if free_bytes(store.root) < wanted:
        raise NoSpace(f"{store.root} has no room for {wanted} more bytes", "free some, or point VNFS_STORE elsewhere")
    try:
        yield
    except BaseException as error:
        if not (resumable and (isinstance(error, NetworkError) or not isinstance(error, VnfsError))):
            take_back(store, missing)
        raise


def take_back(store: Store, blobs: list[Blob]) -> None:
    """Remove those of `blobs` that no version refers to. Does nothing when the store cannot say which those are."""
    for blob in blobs:
        _discard_part(store, blob)
    with suppress(VnfsError), store.lock(wait=False):
        used = {blob.digest for capsule in store.capsules() for blob in (capsule.manifest_blob, *capsule.blobs)}
        for blob in blobs:
            if blob.digest not in used:
                store.blobs.remove(blob)


def _discard_part(store: Store, blob: Blob) -> None:
    """Remove the partial download of a blob, unless another process is at it."""
    path = store.blobs.partial(blob)
    with suppress(FileNotFoundError, BlockingIOError), open(path, "rb") as held:
        fcntl.flock(held.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()


def enter(store: Store, offer: Offer, *, name: str | None = None) -> Capsule:
    """Make an offer whose blobs have all arrived a version of the store.

    It keeps its name, number and digest. With `name` it becomes the next version of that name instead, whose parent
    is the digest offered; if the newest version of that name came from the same digest, that one is returned.
    """
    if name is None:
        return store.adopt(offer.manifest)
    check_name(name)
    config = Config.from_bytes(store.blobs.read(offer.config))
    offered = offer.capsule(config)
    toc = Toc.load(store.blobs.read(offered.toc))
    if toc.digest != config.tree:
        raise TrustError(f"the table of contents of {offered.reference} is not the tree it promises")
    toc.check()
    with suppress(NotFound):
        newest = store.get(Reference(name))
        if newest.config.parent == offered.digest:
            return newest
    return store.publish(
        replace(config, name=name, parent=offered.digest, message=f"from {offered.reference}"),
        layers=offered.layers,
        kernel=offered.kernel,
        initrd=offered.initrd,
        toc=offered.toc,
        sbom=offered.sbom,
    )
