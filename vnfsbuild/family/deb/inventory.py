"""The packages that dpkg's own database says are installed, and the files it says they own."""

from __future__ import annotations

from pathlib import Path

from vnfsbuild.errors import TrustError
from vnfsbuild.model import Package

STATUS = "/var/lib/dpkg/status"
INFO = "/var/lib/dpkg/info"


def inventory(root: Path) -> tuple[Package, ...]:
    """The installed packages of the root, sorted. Raises TrustError when its database cannot be read."""
    try:
        return parse(Path(f"{root}{STATUS}").read_bytes())
    except OSError as error:
        raise TrustError(f"{root}{STATUS} cannot be read: {error.strerror}") from error


def parse(status: bytes) -> tuple[Package, ...]:
    """The packages of a dpkg status file whose state is exactly "installed", sorted."""
    found = []
    for block in status.decode("utf-8", errors="replace").split("\n\n"):
        fields = {}
        for line in block.splitlines():
            if line[:1] not in {" ", "\t", ""}:
                key, _, value = line.partition(":")
                fields[key] = value.strip()
        if fields.get("Status", "").split()[-1:] == ["installed"]:
            missing = [key for key in ("Package", "Version", "Architecture") if not fields.get(key)]
            if missing:
                raise TrustError(f"{STATUS}: the record of {fields.get('Package', 'a package')} has no {missing[0]}")
            found.append(Package(fields["Package"], fields["Version"], fields["Architecture"]))
    return tuple(sorted(found))


def file_lists(package: Package) -> tuple[str, ...]:
    """Where the list of a package's files may be: of a package that can be installed for several architectures, the
    name carries the architecture."""
    return (f"{INFO}/{package.name}.list", f"{INFO}/{package.name}:{package.arch}.list")


def owned(listing: bytes) -> frozenset[str]:
    """The paths of a package's file list; "/." stands for the root."""
    lines = listing.decode("utf-8", errors="surrogateescape").splitlines()
    return frozenset("/" if line == "/." else line for line in lines if line.startswith("/"))


def bookkeeping(path: str) -> bool:
    """Whether dpkg, apt and the tools they trigger write `path` for themselves."""
    return path == "/etc/ld.so.cache" or path.startswith(("/var/lib/dpkg/", "/var/lib/apt/", "/var/cache/"))
