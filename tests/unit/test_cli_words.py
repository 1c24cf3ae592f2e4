"""What the command line prints, whatever strangers wrote into names and messages."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.program import VNFS
from vnfsbuild.cli.common import printable
from vnfsbuild.cli.progress import choose


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain words", "plain words"),
        ("Zürich\ntwo lines", "Zürich\ntwo lines"),
        ("\x1b]0;owned\x07\x1b[2J", "\\x1b]0;owned\\x07\\x1b[2J"),
        ("overwritten\rline\x00\x08", "overwritten\\rline\\x00\\x08"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\x9b31m", "\\x9b31m"),
        (os.fsdecode(b"/etc/\xff\xfe"), "/etc/\\xff\\xfe"),
    ],
)
def test_strangers_words_do_not_reach_the_terminal_as_they_are(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_an_error_with_control_characters_and_odd_bytes_is_printed(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_bytes(b'name = "x"\n"\\u001b[31mred" = 1\n')
    argv = [*VNFS, "lock", recipe]
    done = subprocess.run(argv, capture_output=True, check=False, timeout=30)
    assert done.returncode == 1
    assert b"red" in done.stderr
    assert b"\x1b" not in done.stderr


def test_a_place_that_may_not_be_read_is_an_error_in_words(tmp_path: Path) -> None:
    argv = [*VNFS, "--store", "/proc/self/mem", "list"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30, cwd=tmp_path)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("done", "said"), [(0, "0.0 s\n"), (1, ", 1 node\n"), (2, ", 2 nodes\n")])
def test_progress_counts_in_words_that_fit_the_number(capsys: pytest.CaptureFixture[str], done: int, said: str) -> None:
    with choose("plain").step("status", total=2, unit="nodes") as step:
        step.advance(done)
    assert capsys.readouterr().err.endswith(said)
