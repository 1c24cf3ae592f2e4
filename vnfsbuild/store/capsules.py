"""Capsules in the store: names, versions, tags, history. The index names the manifests of versions.

Every change to `index.json` happens under the store's lock and is one atomic replacement, after everything that the
new index refers to is durable. Kill -9 at any moment leaves the old state or the new one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vnfsbuild.errors import Conflict, NotFound, TrustError
from vnfsbuild.host.fs import atomic_write, lock, make_directory
from vnfsbuild.host.interrupt import finish, held
from vnfsbuild.model import Blob, Reference
from vnfsbuild.store.cas import LocalBlobs
from vnfsbuild.store.manifest import (
    ARTIFACT,
    INITRD,
    KERNEL,
    LAYER,
    MANIFEST,
    SBOM,
    TOC,
    Capsule,
    Config,
    blob_of,
    descriptor,
    manifest_parts,
)

if TYPE_CHECKING:
    from vnfsbuild.store.toc import Toc

INDEX = "application/vnd.oci.image.index.v1+json"

# The files of an OCI image layout, and what names a manifest in its index.
LAYOUT_NAME = "oci-layout"
LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
INDEX_NAME = "index.json"
REF_NAME = "org.opencontainers.image.ref.name"

_SERIAL = "org.vnfs.serial."


class Store:
    """A directory of capsules. Opening it reads nothing; it is made on the first write."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = LocalBlobs(root / "blobs")

    # ---- reading

    def names(self) -> tuple[str, ...]:
        """Names that have at least one version, sorted."""
        return tuple(sorted({Reference.parse(ref).name for ref, _ in self._refs()}))

    def versions(self, name: str) -> tuple[int, ...]:
        """The versions of `name` that are here, rising."""
        found = (Reference.parse(ref) for ref, _ in self._refs())
        return tuple(sorted(ref.version for ref in found if ref.name == name and ref.version is not None))

    def tags(self, name: str) -> dict[str, str]:
        """Tag to manifest digest."""
        found = ((Reference.parse(ref), blob) for ref, blob in self._refs())
        return {ref.tag: blob.digest for ref, blob in found if ref.name == name and ref.tag is not None}

    def get(self, reference: Reference | str) -> Capsule:
        """The version a reference means; a bare name means the newest. Raises NotFound, or TrustError when damaged."""
        ref = Reference.parse(reference) if isinstance(reference, str) else reference
        return self.load(self._find(ref))

    def load(self, manifest: Blob) -> Capsule:
        """Read a version by its manifest's blob. Raises TrustError when it is not a capsule's."""
        data = self.blobs.read(manifest)
        config, parts = manifest_parts(data)
        capsule = Capsule(
            config=Config.from_bytes(self.blobs.read(config)),
            config_blob=config,
            layers=parts[LAYER],
            kernel=parts[KERNEL][0],
            initrd=parts[INITRD][0],
            toc=parts[TOC][0],
            sbom=parts[SBOM][0],
        )
        if capsule.digest != manifest.digest:
            raise TrustError(f"the manifest {manifest.digest} is not in the form that vnfs writes")
        return capsule

    def find_digest(self, digest: str) -> Capsule | None:
        """The version with this manifest digest, under whatever name, if it is here."""
        return next((self.load(blob) for _, blob in self._refs() if blob.digest == digest), None)

    def capsules(self) -> Iterator[Capsule]:
        """Every version, by name, then rising."""
        for name in self.names():
            for version in self.versions(name):
                yield self.get(Reference(name, version=version))

    def toc(self, capsule: Capsule) -> Toc:
        """The table of contents of a version."""
        # Imported here because opening a capsule for editing, which must be instant, reads no table.
        from vnfsbuild.store.toc import Toc  # noqa: PLC0415

        return Toc.load(self.blobs.read(capsule.toc))

    def layer_paths(self, capsule: Capsule) -> tuple[Path, ...]:
        """The layer files, base first. Raises NotFound when one is missing."""
        for blob in capsule.layers:
            if not self.blobs.has(blob):
                raise NotFound(
                    f"{capsule.reference} misses its layer {blob.digest}",
                    "vnfs verify; then pull, import or rebuild the capsule",
                )
        return tuple(self.blobs.path(blob) for blob in capsule.layers)

    # ---- writing

    def lock(self, *, wait: bool = True) -> AbstractContextManager[None]:
        """Hold the store against other writers. Not reentrant."""
        return lock(self.root / "lock", wait=wait, what=f"the store {self.root}")

    def publish(
        self,
        config: Config,
        *,
        layers: Iterable[Blob],
        kernel: Blob,
        initrd: Blob,
        toc: Blob,
        sbom: Blob,
        tag: str | None = None,
    ) -> Capsule:
        """Make the next version of `config.name` from blobs that are in the store; `config.version` is set here."""
        with self.lock():
            index = self._index()
            version = 1 + max(self._serial(index, config.name), *self.versions(config.name), 0)
            config = replace(config, version=version)
            config_blob = self.blobs.put_bytes(config.to_bytes())
            capsule = Capsule(config, config_blob, tuple(layers), kernel, initrd, toc, sbom)
            self._add(index, capsule, tag)
            return capsule

    def tag(self, capsule: Capsule, tag: str) -> None:
        """Let NAME:`tag` mean a version that is here already."""
        with self.lock():
            self._add(self._index(), capsule, tag)

    def adopt(self, manifest: bytes) -> Capsule:
        """Enter a version that came from elsewhere under the name and number it was published with.

        All its blobs must be in the store already. Entering the same one again changes nothing. Raises Conflict when
        that number is taken by another content, TrustError when the manifest is not a capsule's.
        """
        capsule = self.load(self.blobs.put_bytes(manifest))
        toc = self.toc(capsule)
        if toc.digest != capsule.config.tree:
            raise TrustError(f"the table of contents of {capsule.reference} is not the tree it promises")
        toc.check()
        with self.lock():
            # Under the lock, because whoever takes blobs away holds it too.
            for blob in capsule.blobs:
                if not self.blobs.has(blob):
                    raise NotFound(
                        f"{capsule.reference} misses the blob {blob.digest}", "fetch it before entering the version"
                    )
            index = self._index()
            for reference, blob in self._refs(index):
                if reference == capsule.reference and blob.digest != capsule.digest:
                    raise Conflict(
                        f"{capsule.reference} is here already with other content ({blob.digest})",
                        f"what came is {capsule.digest}; the names must be told apart before it can be taken in",
                    )
            self._add(index, capsule, None)
        return capsule

    def _add(self, index: dict[str, Any], capsule: Capsule, tag: str | None) -> None:
        manifest = self.blobs.put_bytes(capsule.manifest())
        names = [capsule.reference, *([f"{capsule.config.name}:{tag}"] if tag else [])]
        kept = [item for item in index["manifests"] if item.get("annotations", {}).get(REF_NAME) not in names]
        added = [
            descriptor(MANIFEST, manifest) | {"artifactType": ARTIFACT, "annotations": {REF_NAME: name}}
            for name in names
        ]
        index["manifests"] = [*kept, *added]
        serial = max(self._serial(index, capsule.config.name), capsule.config.version)
        index.setdefault("annotations", {})[_SERIAL + capsule.config.name] = str(serial)
        make_directory(self.root)
        if not (self.root / LAYOUT_NAME).exists():
            atomic_write(self.root / LAYOUT_NAME, LAYOUT)
        with held():
            atomic_write(self.root / INDEX_NAME, json.dumps(index, sort_keys=True, indent=1).encode())
            finish()  # whoever sees a new version is told of it

    # ---- the index

    def _index(self) -> dict[str, Any]:
        try:
            index = json.loads((self.root / INDEX_NAME).read_bytes())
            if not isinstance(index["manifests"], list):
                raise TypeError("manifests is not a list")
        except FileNotFoundError:
            return {"schemaVersion": 2, "mediaType": INDEX, "manifests": []}
        except (ValueError, KeyError, TypeError) as error:
            raise TrustError(f"{self.root}/{INDEX_NAME} is damaged: {error}") from error
        return dict(index)

    def _refs(self, index: dict[str, Any] | None = None) -> Iterator[tuple[str, Blob]]:
        for item in (index or self._index())["manifests"]:
            name = item.get("annotations", {}).get(REF_NAME)
            if name:
                yield name, blob_of(item)

    @staticmethod
    def _serial(index: dict[str, Any], name: str) -> int:
        return int(index.get("annotations", {}).get(_SERIAL + name, 0))

    def _find(self, ref: Reference) -> Blob:
        versions = self.versions(ref.name)
        if not versions:
            known = ", ".join(self.names()) or "none yet"
            raise NotFound(f"there is no capsule {ref.name} in {self.root}", f"capsules here: {known}")
        if ref.version is None and ref.tag is None and ref.digest is None:
            ref = Reference(ref.name, version=versions[-1])
        for name, blob in self._refs():
            if name == str(ref) or (ref.digest == blob.digest and Reference.parse(name).name == ref.name):
                return blob
        words = [str(version) for version in versions] + sorted(self.tags(ref.name))
        raise NotFound(f"there is no {ref}", f"versions and tags of {ref.name}: {', '.join(words)}")
