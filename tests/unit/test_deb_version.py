"""Versions sort as dpkg sorts them."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vnfsbuild.family.deb.version import compare, satisfies

VERSIONS = st.from_regex(r"(?:[0-9]{1,2}:)?[0-9][a-z0-9.+~]{0,6}(?:-[a-z0-9.+~]{1,4})?", fullmatch=True)


@settings(max_examples=150, deadline=None)
@given(VERSIONS, VERSIONS)
@example("1.0", "1.0-0")
@example("0", "0~")
@example("0~", "~")
@example("1.0~rc1", "1.0")
@example("1.0-1~bpo12+1", "1.0-1")
@example("0:1", "1")
@example("1.", "1.0")
@example("1.0a", "1.0+")
@example("007", "7")
def test_versions_compare_as_dpkg_compares_them(left: str, right: str) -> None:
    order = compare(left, right)
    word = {-1: "lt", 0: "eq", 1: "gt"}[order]
    assert subprocess.run(["dpkg", "--compare-versions", left, word, right], check=False).returncode == 0


@pytest.mark.parametrize(
    ("version", "operator", "wanted", "answer"),
    [
        ("2.0", "", "", True),
        ("2.0", ">=", "2.0", True),
        ("2.0", ">>", "2.0", False),
        ("2.0", "=", "2.0-0", True),
        ("2.0~1", "<<", "2.0", True),
        ("2.0", "<=", "1.9", False),
        ("1:1", ">>", "9", True),
    ],
)
def test_relation_operators(version: str, operator: str, wanted: str, answer: bool) -> None:
    assert satisfies(version, operator, wanted) is answer


def test_numbers_longer_than_python_reads_are_compared() -> None:
    assert compare("1." + "9" * 5000, "1." + "9" * 4999) > 0
