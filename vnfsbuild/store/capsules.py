"""Capsules in the store: names, versions, tags, history. A version is an OCI manifest; the index names them.

Every change to `index.json` happens under the store's lock and is one atomic replacement, after everything that the
new index refers to is durable. Kill -9 at any moment leaves the old state or the new one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vnfsbuild.errors import Conflict, NotFound, TrustError, UsageError
from vnfsbuild.host.fs import atomic_write, lock, make_directory
from vnfsbuild.host.interrupt import finish, held
from vnfsbuild.model import Blob, Reference, check_digest, check_name
from vnfsbuild.store.cas import LocalBlobs, digest_of

if TYPE_CHECKING:
    from vnfsbuild.store.toc import Toc

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
ARTIFACT = "application/vnd.vnfs.capsule.v1"
CONFIG = "application/vnd.vnfs.config.v1+json"
LAYER = "application/vnd.vnfs.layer.v1.squashfs"
KERNEL = "application/vnd.vnfs.kernel.v1"
INITRD = "application/vnd.vnfs.initrd.v1"
TOC = "application/vnd.vnfs.toc.v1+zstd"
SBOM = "application/vnd.cyclonedx+json"

# The files of an OCI image layout, and what names a manifest in its index.
LAYOUT_NAME = "oci-layout"
LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
INDEX_NAME = "index.json"
REF_NAME = "org.opencontainers.image.ref.name"

_SERIAL = "org.vnfs.serial."
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
            "config": _descriptor(CONFIG, self.config_blob),
            "layers": [_descriptor(kind, blob) for kind, blob in parts],
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


def _descriptor(kind: str, blob: Blob) -> dict[str, Any]:
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
            parts[item["mediaType"]] = (*parts.get(item["mediaType"], ()), _blob(item))
        if not parts.get(LAYER) or any(len(parts.get(kind, ())) != 1 for kind in (KERNEL, INITRD, TOC, SBOM)):
            raise ValueError("a part is missing or there twice")
        return _blob(document["config"]), parts
    except (UsageError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise TrustError(f"this is not the manifest of a capsule: {error}") from error


def _blob(descriptor: Mapping[str, Any]) -> Blob:
    size = descriptor["size"]
    if type(size) is not int or size < 0:
        raise ValueError("a size is not a number")
    return Blob(check_digest(str(descriptor["digest"])), size)


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
            _descriptor(MANIFEST, manifest) | {"artifactType": ARTIFACT, "annotations": {REF_NAME: name}}
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
                yield name, _blob(item)

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
