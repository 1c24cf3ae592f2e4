"""What people and nodes say: node words, skip patterns, provenance, answers."""

from __future__ import annotations

import json

import pytest

from vnfsbuild.config import data_directory
from vnfsbuild.deliver.livesync.facts import from_node, on_node, provenance
from vnfsbuild.deliver.livesync.nodes import Node, parse
from vnfsbuild.deliver.livesync.skip import protection
from vnfsbuild.errors import TrustError, UsageError, VnfsError
from vnfsbuild.hybrid.policy import profile

NODES = (
    ("n1", [Node("n1")]),
    ("root@n1:2222", [Node("n1", "root", 2222)]),
    ("n[01-03]", [Node("n01"), Node("n02"), Node("n03")]),
    ("admin@n[1-2,4]:22", [Node("n1", "admin", 22), Node("n2", "admin", 22), Node("n4", "admin", 22)]),
    ("10.0.0.7:22", [Node("10.0.0.7", "", 22)]),
    ("[fe80::1]:22", [Node("fe80::1", "", 22)]),
    ("fe80::1", [Node("fe80::1")]),
)


@pytest.mark.parametrize(("word", "expected"), NODES, ids=[case[0] for case in NODES])
def test_a_word_names_nodes(word: str, expected: list[Node]) -> None:
    assert list(parse([word])) == expected
    assert list(parse([word, word])) == expected
    assert [node for found in expected for node in parse([str(node_word(found))])] == expected


def node_word(node: Node) -> str:
    return str(node)


@pytest.mark.parametrize(
    "word", ["-oProxyCommand=x", "n1:0", "n1:x", "n1:99999", "a b", "", "n[1-", "u;x@n1", "$(id)", "n1\n"]
)
def test_a_word_that_is_no_host_is_refused(word: str) -> None:
    with pytest.raises(UsageError):
        parse([word])


SKIPS = (
    ("/etc/hosts", "/etc/hosts", True),
    ("/etc/hosts", "/etc/hosts.allow", False),
    ("/var/log", "/var/log/a/b", True),
    ("/var/log/", "/var/log", True),
    ("/etc/ssh/ssh_host_*", "/etc/ssh/ssh_host_rsa_key", True),
    ("/etc/*", "/etc/a/b", True),
    ("/etc/*.conf", "/etc/a/b.conf", False),
    ("/etc/**.conf", "/etc/a/b.conf", True),
    ("/a?c", "/abc", True),
    ("/a?c", "/a/c", False),
    ("/a[0-9]", "/a7", True),
    ("/a[!0-9]", "/a7", False),
    ("/a.c", "/abc", False),
    ("/x", "/proc/1", True),
    ("/x", "/var/lib/vnfs/livesync", True),
    ("/etc/*", "/etc/new\nline", True),
)


@pytest.mark.parametrize(("pattern", "path", "expected"), SKIPS)
def test_a_pattern_protects_what_it_names_and_below(pattern: str, path: str, expected: bool) -> None:
    assert protection([pattern], ())(path) is expected


def test_what_a_node_mounted_itself_is_protected_and_the_root_is_not() -> None:
    protected = protection((), ["/", "/home", "/srv/data"])
    assert [path for path in ("/", "/home", "/home/a", "/homes", "/srv", "/srv/data/x") if protected(path)] == [
        "/home",
        "/home/a",
        "/srv/data/x",
    ]


@pytest.mark.parametrize("pattern", ["etc/hosts", "/a[z-a]", "/a\0"])
def test_a_pattern_that_cannot_be_meant_is_an_error(pattern: str) -> None:
    with pytest.raises(VnfsError):
        protection([pattern], ())


def test_the_list_that_comes_with_vnfs_can_be_used() -> None:
    protected = protection(profile("stateless", data_directory("capsules")).livesync_skip, ())
    assert protected("/etc/machine-id")
    assert protected("/var/log/journal/x")
    assert not protected("/etc/passwd")
    assert not protected("/var/lib/dpkg/status")


DIGEST = "sha256:" + "a" * 64
GOOD = {"capsule": "compute", "version": 1, "manifest": DIGEST, "tree": DIGEST, "more": [1]}
PROVENANCES = (
    ("empty", b""),
    ("no JSON", b"{"),
    ("no object", b"[]"),
    ("a number", b"7"),
    ("deep", b"[" * 100_000),
    ("too large", b" " * (65 << 10) + b"{}"),
    ("not UTF-8", b"\xff\xfe"),
    *((f"no {key}", json.dumps({k: v for k, v in GOOD.items() if k != key}).encode()) for key in GOOD if key != "more"),
    ("a name that is a path", json.dumps(GOOD | {"capsule": "../x"}).encode()),
    ("a digest that is none", json.dumps(GOOD | {"manifest": "sha256:../../x"}).encode()),
    ("a digest that is a list", json.dumps(GOOD | {"tree": ["x"]}).encode()),
    ("a version that is text", json.dumps(GOOD | {"version": "1"}).encode()),
    ("a version that is true", json.dumps(GOOD | {"version": True}).encode()),
    ("a bad previous one", json.dumps(GOOD | {"previous": "x"}).encode()),
)


@pytest.mark.parametrize("data", [case[1] for case in PROVENANCES], ids=[case[0] for case in PROVENANCES])
def test_provenance_that_is_wrong_is_refused_naming_the_node(data: bytes) -> None:
    with pytest.raises(TrustError, match="n1"):
        provenance(data, "n1")


def test_provenance_keeps_what_others_wrote() -> None:
    assert provenance(json.dumps(GOOD).encode(), "n1").record["more"] == [1]


@pytest.mark.parametrize("path", ["/", "/a", "/a/-b", "/a\nb", "/ a", "/\udcff"])
def test_paths_go_to_a_node_and_come_back(path: str) -> None:
    assert from_node(on_node(path)) == path


@pytest.mark.parametrize("name", ["./../etc", "./a/../b", "a", "./a//b", "./."])
def test_a_path_that_leads_outside_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not a path"):
        from_node(name)
