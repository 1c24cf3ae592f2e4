"""The `.vnfs` file: a tar of an OCI image layout that holds one version, in one canonical form.

Members come in an order that lets a reader know, before each one, which name and size it must have: `oci-layout`,
`index.json`, the manifest, then the configuration, table of contents, SBOM, layers, kernel and initrd, each once.
Headers carry no time, owner or user name, so the same version makes the same bytes anywhere.
"""

from __future__ import annotations

import json
import tarfile

from vnfsbuild.model import Blob
from vnfsbuild.store.capsules import INDEX, LAYOUT, REF_NAME
from vnfsbuild.store.manifest import ARTIFACT, INITRD, KERNEL, LAYER, MANIFEST, SBOM, TOC, Capsule, manifest_parts

BLOCK = tarfile.BLOCKSIZE
END = bytes(2 * BLOCK)


def blob_name(blob: Blob) -> str:
    """Where a blob lies in the layout."""
    return f"blobs/sha256/{blob.hex}"


def ordered_blobs(manifest: bytes) -> tuple[Blob, ...]:
    """Every blob of a version once, what is read first and small before what is large. Raises TrustError."""
    config, parts = manifest_parts(manifest)
    kinds = (TOC, SBOM, LAYER, KERNEL, INITRD)
    return tuple(dict.fromkeys((config, *(blob for kind in kinds for blob in parts[kind]))))


def index(capsule: Capsule) -> bytes:
    """The `index.json` that names this version and no other."""
    manifest = capsule.manifest_blob
    descriptor = {
        "mediaType": MANIFEST,
        "artifactType": ARTIFACT,
        "digest": manifest.digest,
        "size": manifest.size,
        "annotations": {REF_NAME: capsule.reference},
    }
    document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor]}
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def header(name: str, size: int) -> bytes:
    """The tar header of a regular file (GNU form, which holds sizes beyond 8 GiB in the one block)."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    return member.tobuf(tarfile.GNU_FORMAT)


def padding(size: int) -> int:
    """How many zero bytes follow a member of `size` bytes."""
    return -size % BLOCK


def file_size(capsule: Capsule) -> int:
    """Bytes of the whole `.vnfs` file of a version."""
    blobs = (capsule.manifest_blob, *ordered_blobs(capsule.manifest()))
    sizes = (len(LAYOUT), len(index(capsule)), *(blob.size for blob in blobs))
    return sum(BLOCK + size + padding(size) for size in sizes) + len(END)
