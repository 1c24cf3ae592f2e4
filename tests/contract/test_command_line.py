"""Every command: help with an example, JSON also for errors, exit codes, and nothing imported before it is wanted."""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

from tests.support.capsules import make_capsule
from tests.support.program import VNFS
from vnfsbuild.cli.main import COMMANDS, vnfs
from vnfsbuild.store.capsules import Store


def run(*words: str | Path, store: Path | None = None) -> subprocess.CompletedProcess[str]:
    where = ["--store", str(store)] if store else []
    return subprocess.run(
        [*VNFS, *where, *map(str, words)], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )


def command(name: str) -> click.Command:
    found = vnfs.get_command(click.Context(vnfs), name)
    assert found
    return found


def examples(name: str) -> list[str]:
    epilog = command(name).epilog or ""
    return [line.strip() for line in epilog.partition("Example:\n")[2].splitlines()]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_a_command_does_and_shows_an_example_of_it(name: str) -> None:
    found = command(name)
    text = found.get_help(click.Context(found, info_name=name))
    assert found.help
    assert "--json" in text
    assert "--progress" in text
    assert any(f"vnfs {name}" in line for line in examples(name))
    for option in found.params:
        assert not isinstance(option, click.Option) or option.help, f"{option.name} says nothing"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_of_the_help_are_words_that_the_command_takes(name: str, tmp_path: Path) -> None:
    (tmp_path / "compute-2.vnfs").touch()
    for line in examples(name):
        parts = line.replace("compute-2.vnfs", str(tmp_path / "compute-2.vnfs")).split(" | ")
        ours = [words[2:] for words in map(shlex.split, parts) if words[:2] == ["vnfs", name]]
        assert len(ours) == 1, line
        assert command(name).make_context(name, ours[0]).params


def test_the_readme_and_the_documents_show_words_that_the_commands_take() -> None:
    top = Path(__file__).parents[2]
    seen = set()
    for page in [top / "README.md", *(top / "docs").rglob("*.md")]:
        for line in re.findall(r"^(?: {4})?(vnfs [a-z]+ .*)$", page.read_text(), re.MULTILINE):
            words = shlex.split(line, comments=True)
            command(words[1]).make_context(words[1], words[2:])
            seen.add(words[1])
    assert {"build", "mount", "shell", "umount", "diff", "push", "pull", "serve", "boot", "livesync"} <= seen


def test_help_imports_no_command_and_no_library_beyond_click() -> None:
    code = (
        "import sys\nfrom vnfsbuild.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name for name in eval(done.stderr) if name.startswith("vnfsbuild")}  # a list we printed
    ours = {"cli", "cli.main", "cli.common", "errors", "host", "host.interrupt"}
    assert loaded == {"vnfsbuild", *(f"vnfsbuild.{name}" for name in ours)}
    assert not {"rich", "requests", "aiohttp", "ClusterShell", "zstandard"} & set(eval(done.stderr))
    assert all(name in done.stdout for name in COMMANDS)


def test_ctrl_c_while_the_program_is_loaded_ends_it_without_a_word() -> None:
    code = """
import os, signal, sys
class Early:
    def find_spec(self, name, path, target=None):
        if name == "click":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Early())
from vnfsbuild.cli.__main__ import program
program()
"""
    done = subprocess.run([sys.executable, "-c", code, "list"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_opening_a_capsule_imports_nothing_that_publishing_needs() -> None:
    """Importing is most of the time that `vnfs mount` takes."""
    code = "import sys, vnfsbuild.cli.edit, vnfsbuild.config, vnfsbuild.deliver.edit.mounts\nprint(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(eval(done.stdout))  # a list we printed
    assert not {"zstandard", "shutil", "subprocess", "tomllib", "concurrent.futures", "vnfsbuild.store.toc"} & loaded


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
@pytest.mark.parametrize(("word", "code"), [("--version", 0), ("--nonsense", 2)])
def test_the_exit_code_is_right_when_the_caller_closed_a_stream(closed: str, word: str, code: int) -> None:
    done = subprocess.run(["sh", "-c", f'"$@" {closed}', "sh", *VNFS, word], capture_output=True, check=False)
    assert done.returncode == code
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full"])
def test_progress_that_nobody_can_see_ends_nothing(stderr: str, tmp_path: Path) -> None:
    words = [*VNFS, "--store", str(tmp_path), "verify", "--progress", "plain", "--json"]
    done = subprocess.run(["sh", "-c", f'"$@" {stderr}', "sh", *words], capture_output=True, check=False)
    assert done.returncode == 0
    assert json.loads(done.stdout)["ok"]


def test_help_answers_at_once() -> None:
    took = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    # Seconds of a processor, which another load does not lengthen much. The figure itself is the benchmark's; this is
    # about an import that crept in.
    assert min(took) < 0.5


@pytest.mark.parametrize(
    ("word", "hint"), [("mout", "did you mean mount?"), ("buidl", "did you mean build?"), ("xyzzy", "vnfs --help")]
)
def test_a_mistyped_command_is_answered_with_the_nearest(word: str, hint: str) -> None:
    done = run(word)
    assert done.returncode == 2
    assert f"No such command '{word}': {hint}" in done.stderr


# words, exit code, the word in the error
WRONG = [
    (["show"], 2, "usage"),
    (["show", "nosuch"], 1, "not-found"),
    (["show", "No Name"], 2, "usage"),
    (["nosuch"], 2, "usage"),
    (["list", "--nosuch"], 2, "usage"),
    (["history", "nosuch"], 1, "not-found"),
    (["diff", "a:1", "b"], 1, "not-found"),
    (["verify", "nosuch"], 1, "not-found"),
    (["lock", "/nonexistent/recipe.toml"], 1, "not-found"),
    (["export", "nosuch"], 1, "not-found"),
    (["export", "nosuch", "--format", "nosuch"], 2, "usage"),
    (["import", "/nonexistent"], 2, "usage"),
    (["push", "nosuch", "registry.example.org/a"], 1, "not-found"),
    (["pull", "nohost"], 2, "usage"),
    (["serve", "nosuch"], 1, "not-found"),
    (["serve", "--listen", "nowhere"], 2, "usage"),
    (["boot", "nosuch"], 1, "not-found"),
    (["livesync", "nosuch", "n1"], 1, "not-found"),
    (["status", "n["], 2, "usage"),
]


@pytest.mark.parametrize(("words", "code", "ref"), WRONG, ids=[" ".join(words) for words, *_ in WRONG])
def test_an_error_is_one_json_document_with_json_and_words_on_stderr_without(
    tmp_path: Path, words: list[str], code: int, ref: str
) -> None:
    told = run(*words, "--json", store=tmp_path / "store")
    assert told.returncode == code
    error = json.loads(told.stdout)["error"]
    assert error["ref"] == ref
    assert error["message"]
    said = run(*words, store=tmp_path / "store")
    assert (said.returncode, said.stdout) == (code, "")
    assert "Traceback" not in said.stderr
    assert said.stderr
    assert not (tmp_path / "store").exists()


def test_json_after_two_dashes_belongs_to_the_command_inside(tmp_path: Path) -> None:
    done = run("shell", "nosuch", "--", "lsblk", "--json", store=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("vnfs: ")


@pytest.mark.parametrize("words", [["list"], ["show", "x"], ["verify"], ["lock", "/etc/hostname/x.toml"]])
def test_a_store_that_is_no_directory_is_an_error_in_words(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "file").write_text("x")
    done = run(*words, "--json", store=tmp_path / "file")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["message"]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [["list"], ["history", "tiny"], ["verify"]])
def test_looking_answers_in_json_and_touches_nothing(tmp_path: Path, words: list[str]) -> None:
    make_capsule(Store(tmp_path / "store"), name="tiny")
    before = sorted(path for path in (tmp_path / "store").rglob("*"))
    done = run(*words, "--json", "--progress", "json", store=tmp_path / "store")
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)
    for line in done.stderr.splitlines():
        json.loads(line)
    assert sorted(path for path in (tmp_path / "store").rglob("*")) == before


def test_a_name_or_message_with_a_line_in_it_cannot_pass_for_another_line(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    first = make_capsule(store)
    path = "srv/x\n- /etc/passwd"
    second = make_capsule(store, files={path: b"x"}, parent=first, message="fine\n9  2026-01-01  1 B  evil")
    said = run("diff", first.reference, second.reference, store=store.root)
    assert "  + /srv/x\\n- /etc/passwd\n" in said.stdout
    history = run("history", "demo", store=store.root).stdout.splitlines()
    assert [line.split()[0] for line in history] == ["VERSION", "2", "1"]
    assert "fine\\n9" in run("show", second.reference, store=store.root).stdout


def test_export_to_a_pipe_is_what_import_from_one_takes(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    capsule = make_capsule(store)
    argv = [*VNFS, "--store", str(store.root), "export", "demo", "-"]
    sent = subprocess.run(argv, cwd=tmp_path, check=True, capture_output=True, timeout=30)
    argv = [*VNFS, "--store", str(tmp_path / "target"), "import", "-"]
    subprocess.run(argv, input=sent.stdout, check=True, capture_output=True, timeout=30)
    assert Store(tmp_path / "target").get("demo:1").digest == capsule.digest
    assert not (tmp_path / "-").exists()
    refused = run("export", "demo", "-", "--json", store=store.root)
    assert (refused.returncode, json.loads(refused.stdout)["error"]["ref"]) == (2, "usage")


def test_an_export_to_nobody_ends_without_a_traceback(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    make_capsule(store, files={"srv/big": os.urandom(3_000_000)})
    argv = [*VNFS, "--store", str(store.root), "export", "demo", "-"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode != 0
    assert b"Traceback" not in errors
