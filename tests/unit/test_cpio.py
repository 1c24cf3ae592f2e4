"""newc archives: what is written is what GNU cpio reads, and equal input gives equal bytes."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vnfsbuild.errors import VnfsError
from vnfsbuild.format import cpio

EPOCH = 1_700_000_000
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0\n", exclude_categories=("Cs",)), min_size=1,
                max_size=40).filter(lambda name: name not in {".", ".."} and len(name.encode()) < 200)  # fmt: skip
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join).filter(lambda path: path != "TRAILER!!!")


def archive(*members: cpio.Member, epoch: int = EPOCH) -> bytes:
    out = io.BytesIO()
    size = cpio.pack(members, out, epoch=epoch)
    assert size == len(out.getvalue())
    return out.getvalue()


def extracted(data: bytes, into: Path) -> None:
    subprocess.run(["cpio", "-i", "-m", "--quiet", "--no-absolute-filenames"], input=data, cwd=into, check=True)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(PATHS, st.tuples(st.binary(max_size=300), st.sampled_from([0o644, 0o755, 0o400]))))
def test_gnu_cpio_reads_every_file_as_it_was_given(content: dict[str, tuple[bytes, int]]) -> None:
    files = {
        path: value
        for path, value in content.items()
        if not any(other.startswith(path + "/") for other in content)
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        extracted(archive(*(cpio.file(path, *value) for path, value in files.items())), Path(directory))
        found = {
            str(path.relative_to(directory)): (path.read_bytes(), stat.S_IMODE(path.lstat().st_mode))
            for path in Path(directory).rglob("*")
            if path.is_file()
        }
    assert found == files


def test_links_directories_modes_and_times_arrive(tmp_path: Path) -> None:
    members = (
        cpio.symlink("sbin/modprobe", "../bin/busybox"),
        cpio.directory("root", 0o700),
        cpio.file("old", b"x", mtime=1000),
        cpio.file("new", b"y", mtime=EPOCH + 5),
    )
    extracted(archive(*members), tmp_path)
    assert (tmp_path / "sbin/modprobe").readlink() == Path("../bin/busybox")
    assert stat.S_IMODE((tmp_path / "root").stat().st_mode) == 0o700
    assert (tmp_path / "old").stat().st_mtime == 1000
    assert (tmp_path / "new").stat().st_mtime == EPOCH, "no time is later than the epoch"


def test_device_nodes_are_listed_with_their_numbers() -> None:
    listing = subprocess.run(["cpio", "-itv", "--quiet"], input=archive(cpio.character_device("dev/console", 5, 1)),
                             stdout=subprocess.PIPE, check=True)  # fmt: skip
    assert b"5,   1" in listing.stdout
    assert b"crw-------" in listing.stdout


def test_order_of_members_and_umask_do_not_change_the_bytes() -> None:
    members = [cpio.file("b/c", b"1"), cpio.file("b-d", b"2"), cpio.directory("b"), cpio.file("a", b"3")]
    before = archive(*members)
    mask = os.umask(0o077)
    try:
        assert archive(*members[::-1]) == before
    finally:
        os.umask(mask)


@pytest.mark.parametrize(
    ("summary", "paths"),
    [
        ("absolute", ["/etc/passwd"]),
        ("climbs out", ["a/../../b"]),
        ("empty part", ["a//b"]),
        ("NUL", ["a\0b"]),
        ("the trailer's name", ["TRAILER!!!"]),
        ("twice", ["a", "a"]),
        ("below a file", ["a", "a/b"]),
        ("too long", ["x" * 4096]),
    ],
)
def test_paths_that_cannot_be_are_refused(summary: str, paths: list[str]) -> None:
    with pytest.raises(VnfsError):
        archive(*(cpio.file(path, b"") for path in paths))
