"""Packages: as dpkg's database has them, as a bill of materials carries them, as a comparison tells them."""

from __future__ import annotations

import json

import pytest

from tests.support.trees import status
from vnfsbuild.deliver.diff import PackageChange, compare, compare_packages
from vnfsbuild.errors import TrustError
from vnfsbuild.family.deb.inventory import owned, parse
from vnfsbuild.family.deb.scrub import is_volatile
from vnfsbuild.model import Package
from vnfsbuild.store import sbom
from vnfsbuild.store.toc import Entry, FileType, Toc

ODD = (Package("libstdc++6", "12.2.0-14+deb12u1", "amd64"), Package("tree", "1:2.1.0~rc1-1", "all"))


def test_only_installed_packages_are_in_the_inventory() -> None:
    text = status(*ODD) + b"\nPackage: half\nStatus: install ok half-configured\nVersion: 1\nArchitecture: all\n"
    assert parse(text) == tuple(sorted(ODD))


def test_a_record_without_a_version_is_refused() -> None:
    with pytest.raises(TrustError, match="broken has no Version"):
        parse(b"Package: broken\nStatus: install ok installed\nArchitecture: all\n")


def test_a_bill_of_materials_carries_packages_both_ways() -> None:
    data = sbom.to_bytes(reversed(ODD))
    assert sbom.packages(data) == tuple(sorted(ODD))
    assert data == sbom.to_bytes(ODD)
    document = json.loads(data)
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.5")
    assert document["components"][0]["purl"] == "pkg:deb/debian/libstdc%2B%2B6@12.2.0-14%2Bdeb12u1?arch=amd64"


@pytest.mark.parametrize("data", [b"", b"[]", b'{"bomFormat":"SPDX","components":[]}', b'{"bomFormat":"CycloneDX"}'])
def test_another_document_is_no_bill_of_materials(data: bytes) -> None:
    with pytest.raises(TrustError):
        sbom.packages(data)


def test_packages_are_told_as_added_removed_and_changed() -> None:
    before = (Package("a", "1", "all"), Package("b", "1", "amd64"), Package("b", "2", "i386"), Package("c", "1", "all"))
    after = (Package("a", "2", "all"), Package("b", "1", "amd64"), Package("b", "2", "i386"), Package("d", "1", "all"))
    assert compare_packages(before, after) == (
        PackageChange("a", "1", "2"),
        PackageChange("c", "1", ""),
        PackageChange("d", "", "1"),
    )


def test_a_file_list_names_paths() -> None:
    assert owned(b"/.\n/usr\n/usr/bin/tree\ndiverted by x to: y\n") == {"/", "/usr", "/usr/bin/tree"}


def _file(path: str, **fields: object) -> Entry:
    return Entry(path, FileType.FILE, **{"mode": 0o644, "sha256": "a" * 64} | fields)  # type: ignore[arg-type]


CHANGES: dict[str, tuple[Entry | None, Entry | None, tuple[str, ...], str, str]] = {
    # name: (before, after, what, group, why it is only counted)
    "added": (None, _file("/etc/x"), ("added",), "configuration", ""),
    "deleted": (_file("/opt/x"), None, ("deleted",), "files", ""),
    "content, whose time goes without saying": (
        _file("/etc/x"),
        _file("/etc/x", sha256="b" * 64, mtime=5),
        ("content",),
        "configuration",
        "",
    ),
    "mode and owner": (_file("/x"), _file("/x", mode=0o600, uid=3), ("mode", "owner"), "files", ""),
    "capability": (
        _file("/x"),
        _file("/x", xattrs=(("security.capability", b"1"),)),
        ("capability",),
        "files",
        "",
    ),
    "type": (_file("/x"), Entry("/x", FileType.SYMLINK, target="y"), ("type",), "files", ""),
    "unit": (None, _file("/usr/lib/systemd/system/x.service"), ("added",), "units", ""),
    "module": (None, _file("/usr/lib/modules/6.1/x.ko"), ("added",), "modules", ""),
    "books": (None, _file("/var/lib/dpkg/info/x.list"), ("added",), "files", "books"),
    "package": (None, _file("/usr/bin/tree"), ("added",), "files", "package"),
    "time of a directory": (
        Entry("/usr", FileType.DIRECTORY),
        Entry("/usr", FileType.DIRECTORY, mtime=4),
        ("time",),
        "files",
        "time",
    ),
    "time of a file": (_file("/x"), _file("/x", mtime=4), ("time",), "files", ""),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_change_is_told_as(case: str) -> None:
    before, after, what, group, explained = CHANGES[case]
    (change,) = compare(Toc((before,) if before else ()), Toc((after,) if after else ()), frozenset({"/usr/bin/tree"}))
    assert (change.what, change.group, change.explained) == (what, group, explained)


VOLATILE = {
    "/etc/machine-id": True,
    "/etc/machine-id.d": False,
    "/etc/ssh/ssh_host_ed25519_key": True,
    "/etc/ssh/ssh_host_ed25519_key.pub": True,
    "/etc/ssh/sshd_config": False,
    "/var/lib/apt/lists": False,
    "/var/lib/apt/lists/partial": True,
    "/var/lib/apt/extended_states": False,
    "/etc/shadow-": True,
    "/etc/shadow": False,
    "/var/log/dpkg.log.1": True,
    "/var/log/slurm": False,
    "/root/.bashrc": False,
}


@pytest.mark.parametrize("path", VOLATILE)
def test_what_is_never_published(path: str) -> None:
    assert is_volatile(path) is VOLATILE[path]
