"""Locks: text that a person can review, and that reads back to the same."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnfsbuild import lockfile
from vnfsbuild.errors import RecipeError
from vnfsbuild.lockfile import Lock, LockedPackage, LockedRepository

words = st.text(string.ascii_letters + string.digits + '+-.~:/_ "\\é', min_size=1, max_size=20)
digests = st.text("0123456789abcdef", min_size=64, max_size=64).map(lambda text: f"sha256:{text}")
packages = st.builds(
    LockedPackage,
    name=words,
    version=words,
    arch=words,
    url=words,
    size=st.integers(0, 1 << 40),
    sha256=digests,
    essential=st.booleans(),
)
repositories = st.builds(
    LockedRepository,
    uri=words,
    suite=words,
    components=st.lists(words, max_size=3).map(tuple),
    release=digests,
    signed_by=words,
    date=words,
)
locks = st.builds(
    Lock,
    inputs=digests,
    distro=words,
    suite=words,
    arch=words,
    repositories=st.lists(repositories, max_size=3).map(tuple),
    packages=st.lists(packages, max_size=4).map(tuple),
    tools=st.lists(packages, max_size=2).map(tuple),
)


@given(locks)
def test_a_lock_reads_back_to_what_was_written(lock: Lock) -> None:
    assert lockfile.parse(lockfile.dump(lock)) == lock


@pytest.mark.parametrize(
    "text",
    ["", "format = 2", "x", 'format = 1\ninputs = ""', "format = 1\npackages = [{name = 3}]", "format=1\npackages=5"],
)
def test_what_is_no_lock_is_refused_naming_the_file(text: str) -> None:
    with pytest.raises(RecipeError, match=r"^compute\.lock is not a lock"):
        lockfile.parse(text, source="compute.lock")


def test_a_lock_lies_beside_its_recipe(tmp_path: Path) -> None:
    path = lockfile.path_for(tmp_path / "compute.toml")
    assert path == tmp_path / "compute.lock"
    assert lockfile.read(path) is None
