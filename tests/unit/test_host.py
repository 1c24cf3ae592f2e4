"""Processes, locks and atomic files of this host."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vnfsbuild.errors import Busy, CommandFailed, HostError, NoSpace, ProgramMissing
from vnfsbuild.host import fs
from vnfsbuild.host.run import run, started, which


def test_a_failure_carries_the_command_to_paste_and_the_last_lines() -> None:
    with pytest.raises(CommandFailed) as caught:
        run(["sh", "-c", "echo fine; echo 'disk on fire' >&2; exit 4"], what="the job")
    assert caught.value.returncode == 4
    assert "the job failed with exit code 4" in caught.value.message
    assert "disk on fire" in caught.value.message
    assert "sh -c 'echo fine" in caught.value.hint


def test_a_missing_program_says_how_to_install_it() -> None:
    with pytest.raises(ProgramMissing) as caught:
        which("no-such-program")
    assert caught.value.hint == "apt-get install no-such-program"


def test_children_get_a_fixed_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    text = run(["env"]).text
    assert "LC_ALL=C.UTF-8" in text
    assert "SOURCE_DATE_EPOCH" not in text


def test_a_program_that_does_not_end_is_ended_with_its_children() -> None:
    marker = f"86399.{os.getpid()}"
    with pytest.raises(CommandFailed, match="gave no answer"):
        run(["sh", "-c", f"sleep {marker} & wait"], timeout=0.5)
    end = time.monotonic() + 10
    while (left := subprocess.run(["pgrep", "-f", f"sleep {marker}"], capture_output=True, check=False).stdout) != b"":
        assert time.monotonic() < end, left
        time.sleep(0.05)


def test_leaving_the_context_ends_what_was_started() -> None:
    with started(["sleep", "86398.5"]) as process:
        assert process.poll() is None
    assert process.returncode == -signal.SIGTERM


def test_lines_are_heard_as_they_come_and_a_huge_line_is_no_problem() -> None:
    heard: list[str] = []
    run(["sh", "-c", "echo one; echo two >&2; head -c 300000 /dev/zero | tr '\\0' x"], on_line=heard.append)
    assert heard[:2] == ["one", "two"]
    assert len(heard[2]) == 300000


def test_an_atomic_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    fs.atomic_write(path, b"old")

    def break_off() -> None:
        with fs.atomic_file(path) as out:
            out.write(b"half of the n")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        break_off()
    assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["index.json"]


def test_a_lock_dies_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    program = (
        "import sys, time; from pathlib import Path; from vnfsbuild.host import fs\n"
        "with fs.lock(Path(sys.argv[1])):\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(Busy, match="the store"), fs.lock(path, wait=False, what="the store"):
            pass
        holder.kill()
    with fs.lock(path, wait=False):
        pass


def test_scratch_space_goes_with_its_context_and_a_killed_one_goes_with_the_next(tmp_path: Path) -> None:
    program = (
        "import sys, os, signal; from pathlib import Path; from vnfsbuild.host import fs\n"
        "with fs.work_directory(Path(sys.argv[1]), 'build') as place:\n"
        "    (place / 'x').mkdir(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    left = list(tmp_path.iterdir())
    assert len(left) == 1
    with fs.work_directory(tmp_path, "build") as place:
        assert list(tmp_path.iterdir()) == [place]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "made", ["fs.work_directory(here, 'x')", "fs.work_file(here, 'x')", "fs.atomic_file(here / 'x')"]
)
def test_scratch_of_a_killed_process_goes_even_when_it_is_empty(made: str, tmp_path: Path) -> None:
    program = (
        "import sys, os, signal; from pathlib import Path; from vnfsbuild.host import fs\n"
        f"here = Path(sys.argv[1])\nwith {made}: os.kill(os.getpid(), signal.SIGKILL)"
    )
    (tmp_path / "x-of-somebody-else").touch()
    (tmp_path / "x-0123456789ab.txt").touch()
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert len(list(tmp_path.iterdir())) == 3
    for prefix in ("x", ".x"):
        fs.sweep(tmp_path, prefix)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x-0123456789ab.txt", "x-of-somebody-else"]


def test_living_scratch_is_never_swept_however_many_make_it_at_once(tmp_path: Path) -> None:
    def work(number: int) -> None:
        for _ in range(100):
            with fs.work_directory(tmp_path, "w") as place, fs.work_file(tmp_path, "w") as (path, out):
                out.write(b"%d" % number)
                (place / "mine").touch()
                assert path.exists()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_a_directory_should_be_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HostError, match="a file is in the way"):
        fs.make_directory(tmp_path / "file" / "store")


def test_removing_a_tree_does_not_follow_a_link(tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    (outside / "precious").touch()
    (inside / "link").symlink_to(outside)
    fs.remove_tree(inside)
    assert (outside / "precious").exists()
    assert not inside.exists()


def test_a_full_file_system_is_named_by_what_was_to_be_written() -> None:
    with pytest.raises(NoSpace, match="where /somewhere lies"), fs.space_errors(Path("/somewhere")):
        os.write(os.open("/dev/full", os.O_WRONLY), b"x")
