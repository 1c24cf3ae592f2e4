"""The tree of errors is the one that its module draws, and every error has a word for machines."""

from __future__ import annotations

import importlib
import pkgutil
import re

import pytest

import vnfsbuild
from vnfsbuild import errors
from vnfsbuild.errors import VnfsError


def below(kind: type[VnfsError]) -> set[type[VnfsError]]:
    return {kind}.union(*(below(child) for child in kind.__subclasses__()))


@pytest.fixture(scope="module")
def kinds() -> set[type[VnfsError]]:
    for module in pkgutil.walk_packages(vnfsbuild.__path__, "vnfsbuild."):
        importlib.import_module(module.name)
    return below(VnfsError)


def test_the_drawn_tree_is_the_tree_that_all_modules_make(kinds: set[type[VnfsError]]) -> None:
    drawn, parents = set(), ["VnfsError"]
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"((?:│   |    )*)[├└]── (\w+)", line):
            depth = len(match[1]) // 4 + 1
            parents[depth:] = [match[2]]
            drawn.add((match[2], parents[depth - 1]))
    public = {kind for kind in kinds if not kind.__name__.startswith("_")}
    assert drawn == {(kind.__name__, kind.__bases__[0].__name__) for kind in public if kind is not VnfsError}
    assert {kind.__module__ for kind in public} == {"vnfsbuild.errors"}


def test_every_error_has_a_word_and_an_exit_code_of_the_contract(kinds: set[type[VnfsError]]) -> None:
    for kind in kinds:
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", kind.ref)
        assert kind.exit_code in {1, 2, 3, 130}
