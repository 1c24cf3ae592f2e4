"""Control data is read as deb-control(5) says."""

from __future__ import annotations

import pytest

from vnfsbuild.errors import ResolveError
from vnfsbuild.family.deb.control import Relation, parse_relations, parse_stanza


def test_a_stanza_keeps_continuation_lines() -> None:
    text = "Package: a\nDescription: short\n long\n .\nEmpty:\nDepends: b,\n c\n"
    assert parse_stanza(text) == {
        "Package": "a",
        "Description": "short\nlong\n.",
        "Empty": "",
        "Depends": "b,\nc",
    }


def test_field_names_have_no_case_and_lines_end_at_line_ends_only() -> None:
    text = "package: a\nPRE-depends: b\nDescription: short\n one\x0ctwo\x85three\u2028four\rfive\nX-Own: y"
    assert parse_stanza(text) == {
        "Package": "a",
        "Pre-Depends": "b",
        "Description": "short\none\x0ctwo\x85three\u2028four\rfive",
        "X-Own": "y",
    }


@pytest.mark.parametrize("text", [" starts with a blank", "no colon", "Key: v\n\x00bad"])
def test_what_is_no_stanza_is_refused(text: str) -> None:
    with pytest.raises(ResolveError):
        parse_stanza(text)


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("", ()),
        ("a", ((Relation("a"),),)),
        ("a, b|c", ((Relation("a"),), (Relation("b"), Relation("c")))),
        ("a (>= 1:2~3-4)", ((Relation("a", ">=", "1:2~3-4"),),)),
        ("a(<<2)", ((Relation("a", "<<", "2"),),)),
        ("python3:any (>= 3.9~)", ((Relation("python3", ">=", "3.9~", "any"),),)),
        ("a,\n b,", ((Relation("a"),), (Relation("b"),))),
        ("libstdc++6 (= 1) [amd64] <!nocheck>", ((Relation("libstdc++6", "=", "1"),),)),
    ],
)
def test_relations(text: str, groups: tuple[tuple[Relation, ...], ...]) -> None:
    assert parse_relations(text) == groups


@pytest.mark.parametrize("text", ["a b", "a (1)", "(>= 1)", "a (>= 1", "a |", "../a"])
def test_what_is_no_relation_is_refused(text: str) -> None:
    with pytest.raises(ResolveError, match="not a relation"):
        parse_relations(text)
