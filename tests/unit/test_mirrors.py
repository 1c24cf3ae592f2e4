"""Mirrors are found in the order that is promised, and none is written down here."""

from __future__ import annotations

from pathlib import Path

import pytest

from vnfsbuild.errors import HostError, UsageError
from vnfsbuild.family.distros import release, releases
from vnfsbuild.family.mirrors import locate

BOOKWORM = release("debian", "bookworm")
OS_RELEASE = 'ID=debian\nVERSION_CODENAME="bookworm"\n'
DEB822 = """\
# ours
Types: deb deb-src
URIs: http://a.example/debian/
Suites: bookworm bookworm-updates
Components: main
 contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Enabled: no
Types: deb
URIs: http://off.example/debian-security
Suites: bookworm-security
Components: main

Types: deb
URIs: http://s.example/debian-security
Suites: bookworm-security
Components: main
"""
ONE_LINE = """\
deb http://stranger.example/apt bookworm main
deb cdrom:[Debian]/ bookworm main
deb [arch=amd64 signed-by=/usr/share/keyrings/stranger.gpg] http://strange.example/debian bookworm main
deb-src http://source.example/debian bookworm main
deb http://b.example/debian bookworm main contrib # the one
"""
INFO = """\
Suite: {series}-security
BaseURI: https://i.example/security/

Suite: {series}
BaseURI: https://i.example/debian/
"""


def host(tmp_path: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def uris(row_suite: str, tmp_path: Path, files: dict[str, str], recipe: str = "", **site: str) -> list[str]:
    row = release("debian", row_suite)
    site = {key.replace("__", "-"): value for key, value in site.items()}
    return list(locate(row, recipe=recipe, site=site, host=host(tmp_path, files)).values())


EVERYTHING = {
    "etc/os-release": OS_RELEASE,
    "etc/apt/sources.list.d/debian.sources": DEB822,
    "usr/share/python-apt/templates/Debian.info": INFO,
}
LISTED = {
    "etc/os-release": OS_RELEASE,
    "etc/apt/sources.list": ONE_LINE,
    "usr/share/python-apt/templates/Debian.info": INFO,
}


@pytest.mark.parametrize(
    ("suite", "files", "said", "expected"),
    [
        ("bookworm", EVERYTHING, {"recipe": "http://r/debian"}, ["http://r/debian"] * 2 + ["http://r/debian-security"]),
        ("bookworm", EVERYTHING, {"recipe": "http://r/x/"}, ["http://r/x"] * 3),
        ("bookworm", EVERYTHING, {"debian": "http://m/debian/"}, ["http://m/debian"] * 2 + ["http://m/debian-security"]),
        (
            "bookworm",
            EVERYTHING,
            {"debian": "http://m/debian", "debian_security": "http://s"},
            ["http://m/debian"] * 2 + ["http://s"],
        ),
        (
            "bookworm",
            EVERYTHING,
            {"debian__security": "http://s"},
            ["http://a.example/debian"] * 2 + ["http://s"],
        ),
        ("bookworm", EVERYTHING, {}, ["http://a.example/debian"] * 2 + ["http://s.example/debian-security"]),
        ("trixie", EVERYTHING, {}, ["http://a.example/debian"] * 2 + ["http://s.example/debian-security"]),
        (
            "bookworm",
            EVERYTHING | {"etc/os-release": "ID=ubuntu\nVERSION_CODENAME=noble\n"},
            {},
            ["https://i.example/debian"] * 2 + ["https://i.example/security"],
        ),
        (
            "bookworm",
            LISTED,
            {},
            ["http://b.example/debian", "https://i.example/debian", "https://i.example/security"],
        ),
    ],
    ids=["recipe", "one tree", "site", "site, both", "site, security", "host", "other suite", "other host", "lines"],
)  # fmt: skip
def test_order_of_places(
    tmp_path: Path, suite: str, files: dict[str, str], said: dict[str, str], expected: list[str]
) -> None:
    assert uris(suite, tmp_path, files, **said) == expected


def test_nothing_found_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="no mirror is known for Debian bookworm") as caught:
        uris("bookworm", tmp_path, {})
    assert "VNFS_MIRROR_DEBIAN" in caught.value.hint


def test_a_mirror_that_cannot_be_fetched_from_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="ftp://"):
        uris("bookworm", tmp_path, {}, recipe="ftp://x/debian")


def test_every_row_of_the_table_is_complete() -> None:
    assert {"bookworm", "trixie"} <= {row.suite for row in releases()}
    for row in releases():
        assert row == release(row.id, row.version)
        assert all(len(word) == 40 for word in row.signers)
        assert {pocket.archive for pocket in row.pockets} <= dict(row.archives).keys()


@pytest.mark.parametrize(
    ("distro", "suite", "near"), [("debain", "bookworm", "debian"), ("debian", "bookwrom", "bookworm")]
)
def test_an_unknown_release_names_the_nearest(distro: str, suite: str, near: str) -> None:
    with pytest.raises(UsageError) as caught:
        release(distro, suite)
    assert near in caught.value.hint
