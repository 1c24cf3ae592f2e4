"""The trial machine's command line, and errors before anything runs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.program import VNFS
from vnfsbuild.errors import UsageError
from vnfsbuild.serve.qemu import Hardware, command


def test_the_machine_has_no_disk_and_forwards_ssh_from_loopback_only() -> None:
    words = command(Hardware(memory="2048M", cpus=3, ssh_port=2222), script="http://10.0.2.2:80/boot.ipxe")
    assert words[0] == "qemu-system-x86_64"
    assert "user,id=net0,bootfile=http://10.0.2.2:80/boot.ipxe,hostfwd=tcp:127.0.0.1:2222-:22" in words
    assert not {"-drive", "-hda", "-cdrom"} & set(words)
    assert words[words.index("-m") + 1] == "2048M"
    assert words[words.index("-smp") + 1] == "3"


@pytest.mark.parametrize("memory", ["", "0G", "3", "-1G", "3G,slots=2", "3 G"])
def test_memory_that_qemu_would_misread_is_refused(memory: str) -> None:
    with pytest.raises(UsageError, match="amount of memory"):
        command(Hardware(memory=memory), script="http://h/")


@pytest.mark.parametrize(
    ("summary", "words", "code", "says"),
    [
        ("no such capsule", ["absent"], 1, "no capsule absent"),
        ("a malformed reference", ["Absent:"], 2, "not a capsule name"),
        ("no such key", ["absent", "--ssh-key", "/nonexistent.pub"], 1, "no capsule absent"),
    ],
)
def test_boot_says_what_is_wrong_before_it_starts_anything(
    tmp_path: Path, summary: str, words: list[str], code: int, says: str
) -> None:
    argv = [*VNFS, "--store", str(tmp_path), "boot"]
    done = subprocess.run([*argv, *words], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, says in done.stderr) == (code, True), done.stderr
