"""References and names: what may be typed, and what it means."""

from __future__ import annotations

import pytest

from vnfsbuild.errors import UsageError
from vnfsbuild.model import Reference

DIGEST = "sha256:" + "a" * 64

MEANINGS = [
    ("compute", Reference("compute")),
    ("compute:7", Reference("compute", version=7)),
    ("compute:stable", Reference("compute", tag="stable")),
    (f"compute@{DIGEST}", Reference("compute", digest=DIGEST)),
    ("0.base_x-y", Reference("0.base_x-y")),
]

WRONG = [
    "",
    "Compute",
    "-x",
    "a b",
    "../etc",
    "a/b",
    "compute:",
    "compute:0",
    "compute:-1",
    "compute:a b",
    "compute@sha256:abc",
    f"compute@{DIGEST.upper()}",
    "x" * 200,
    "compute\n",
    "compute:7\n",
]


@pytest.mark.parametrize(("text", "meaning"), MEANINGS)
def test_a_reference_means_what_the_design_says_and_prints_as_typed(text: str, meaning: Reference) -> None:
    assert Reference.parse(text) == meaning
    assert str(meaning) == text


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_reference_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Reference.parse(text)
    assert caught.value.hint
