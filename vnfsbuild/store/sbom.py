"""The list of packages in a capsule, as CycloneDX 1.5 JSON. The same packages always give the same bytes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote, unquote

from vnfsbuild.errors import TrustError
from vnfsbuild.model import Package

_TYPES = {"deb": "deb", "rpm": "rpm"}


def to_bytes(packages: Iterable[Package], *, family: str = "deb", distro: str = "debian") -> bytes:
    """Write a bill of materials, packages sorted. `distro` is the namespace of the package URLs."""
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "components": [_component(package, family, distro) for package in sorted(packages)],
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _component(package: Package, family: str, distro: str) -> dict[str, Any]:
    kind = _TYPES.get(family, "generic")
    name, version, arch = (quote(word, safe="-._~") for word in (package.name, package.version, package.arch))
    return {
        "type": "library",
        "bom-ref": f"{package.name}@{package.version}:{package.arch}",
        "name": package.name,
        "version": package.version,
        "purl": f"pkg:{kind}/{quote(distro, safe='')}/{name}@{version}?arch={arch}",
    }


def packages(sbom: bytes) -> tuple[Package, ...]:
    """The packages of a bill of materials, sorted. Raises TrustError when it is not one of vnfs."""
    try:
        document = json.loads(sbom)
        if document["bomFormat"] != "CycloneDX":
            raise ValueError("it is not CycloneDX")
        found = []
        for item in document["components"]:
            _, _, arch = item["purl"].rpartition("?arch=")
            found.append(Package(str(item["name"]), str(item["version"]), unquote(arch)))
        return tuple(sorted(found))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrustError(f"this is not a bill of materials: {error}") from error
