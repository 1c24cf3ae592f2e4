"""What a version is, as bytes: its configuration, and the OCI manifest that names all its parts.

Documents may come from strangers: reading one checks its form. What its digests refer to is checked where it is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from vnfsbuild.errors import TrustError, UsageError
from vnfsbuild.model import Blob, check_digest, check_name
from vnfsbuild.store.cas import digest_of

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT = "application/vnd.vnfs.capsule.v1"
CONFIG = "application/vnd.vnfs.config.v1+json"
LAYER = "application/vnd.vnfs.layer.v1.squashfs"
KERNEL = "application/vnd.vnfs.kernel.v1"
INITRD = "application/vnd.vnfs.initrd.v1"
TOC = "application/vnd.vnfs.toc.v1+zstd"
SBOM = "application/vnd.cyclonedx+json"

_NODE_RESERVE = 256_000_000
_MAX_MANIFEST = 4 << 20
_MAX_VERSION = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class Kernel:
    """The kernel a capsule boots: its release as uname says it, and the words on its command line."""

    release: str
    cmdline: str = ""


@dataclass(frozen=True, slots=True)
class State:
    """How a node keeps the root, and which paths livesync leaves to the node."""

    mode: str = "stateless"
    livesync_skip: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Config:
    """What a version says of itself. Digests are sha256:<hex>; `created` is RFC 3339 in UTC; `family` and `distro`
    are a row of the distributions' table; `architecture` is that row's word (amd64)."""

    name: str
    version: int
    created: str
    tree: str
    family: str
    distro: str
    suite: str
    architecture: str
    kernel: Kernel
    state: State = field(default_factory=State)
    message: str = ""
    parent: str = ""
    recipe: str = ""
    lock: str = ""

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Config:
        """Raises TrustError when the bytes are not a capsule's configuration."""
        try:
            record = json.loads(data)
            kernel = Kernel(**record.pop("kernel"))
            state = record.pop("state")
            known = State(mode=state["mode"], livesync_skip=tuple(state["livesync_skip"]))
            config = cls(kernel=kernel, state=known, **record)
            check_name(config.name)
            check_digest(config.tree)
            if type(config.version) is not int or not 0 < config.version <= _MAX_VERSION:
                raise ValueError("the version is not a positive number")
            words = [getattr(config, name) for name in cls.__slots__ if name not in {"version", "kernel", "state"}]
            if not all(isinstance(word, str) for word in (*words, kernel.release, kernel.cmdline, known.mode)):
                raise ValueError("a word is not text")
            if not all(isinstance(path, str) for path in known.livesync_skip):
                raise ValueError("a path to skip is not text")
        except (UsageError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise TrustError(f"this is not a capsule's configuration: {error}") from error
        return config


@dataclass(frozen=True, slots=True)
class Capsule:
    """One published version: its configuration and the blobs it consists of (layers base first)."""

    config: Config
    config_blob: Blob
    layers: tuple[Blob, ...]
    kernel: Blob
    initrd: Blob
    toc: Blob
    sbom: Blob

    @property
    def reference(self) -> str:
        return f"{self.config.name}:{self.config.version}"

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """Everything the manifest refers to, in its order."""
        return (self.config_blob, *self.layers, self.kernel, self.initrd, self.toc, self.sbom)

    @property
    def size(self) -> int:
        return sum(blob.size for blob in self.blobs)

    @property
    def memory(self) -> int:
        """Bytes of memory a node needs to boot it statelessly: the layers, and a reserve to run in."""
        return sum(layer.size for layer in self.layers) + _NODE_RESERVE

    def manifest(self) -> bytes:
        """The OCI manifest, in one canonical form: its sha256 is the digest of the version."""
        parts = [
            *((LAYER, blob) for blob in self.layers),
            (KERNEL, self.kernel),
            (INITRD, self.initrd),
            (TOC, self.toc),
            (SBOM, self.sbom),
        ]
        document = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": ARTIFACT,
            "config": descriptor(CONFIG, self.config_blob),
            "layers": [descriptor(kind, blob) for kind, blob in parts],
            "annotations": {
                "org.opencontainers.image.created": self.config.created,
                "org.opencontainers.image.title": self.config.name,
                "org.opencontainers.image.version": str(self.config.version),
            },
        }
        return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()

    @property
    def digest(self) -> str:
        return digest_of(self.manifest())

    @property
    def manifest_blob(self) -> Blob:
        data = self.manifest()
        return Blob(digest_of(data), len(data))


def descriptor(kind: str, blob: Blob) -> dict[str, Any]:
    """How OCI refers to a blob of a media type."""
    return {"mediaType": kind, "digest": blob.digest, "size": blob.size}


def manifest_parts(manifest: bytes) -> tuple[Blob, dict[str, tuple[Blob, ...]]]:
    """The configuration's blob, and the other blobs by media type, of a manifest that may come from anywhere.

    Raises TrustError when it is not the manifest of a capsule. Sizes and digests are checked for form only.
    """
    try:
        if len(manifest) > _MAX_MANIFEST:
            raise ValueError("it is too large")
        document = json.loads(manifest)
        if document["artifactType"] != ARTIFACT or document["config"]["mediaType"] != CONFIG:
            raise ValueError(f"its type is {document['artifactType']!r}")
        parts: dict[str, tuple[Blob, ...]] = {}
        for item in document["layers"]:
            parts[item["mediaType"]] = (*parts.get(item["mediaType"], ()), blob_of(item))
        if not parts.get(LAYER) or any(len(parts.get(kind, ())) != 1 for kind in (KERNEL, INITRD, TOC, SBOM)):
            raise ValueError("a part is missing or there twice")
        return blob_of(document["config"]), parts
    except (UsageError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise TrustError(f"this is not the manifest of a capsule: {error}") from error


def blob_of(record: Mapping[str, Any]) -> Blob:
    """What a descriptor refers to. Raises ValueError, KeyError or UsageError when it is none."""
    size = record["size"]
    if type(size) is not int or size < 0:
        raise ValueError("a size is not a number")
    return Blob(check_digest(str(record["digest"])), size)
