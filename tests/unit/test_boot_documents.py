"""Boot plan, node files and iPXE script: functions of their input, with nothing in them that somebody interprets."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from vnfsbuild.errors import UsageError
from vnfsbuild.model import Blob
from vnfsbuild.serve import boot
from vnfsbuild.store.manifest import Capsule, Config, Kernel

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHjKj2n+0kq0a1tq5vYqkW3b7hTn6Vw0mXgk8rXk9s1Z admin@head"
PLAN = """\
vnfs-plan 1
capsule compute
version 7
manifest {manifest}
tree sha256:{tree}
kernel 6.1.0-9-amd64
memory 256000300
layer sha256:{one} 100
layer sha256:{two} 200
end
"""


def blob(digit: str, size: int = 10) -> Blob:
    return Blob("sha256:" + digit * 64, size)


def capsule(cmdline: str = "console=ttyS0") -> Capsule:
    config = Config(name="compute", version=7, created="2026-01-01T00:00:00Z", tree="sha256:" + "a" * 64, family="deb",
                    distro="debian", suite="bookworm", architecture="amd64",
                    kernel=Kernel("6.1.0-9-amd64", cmdline))  # fmt: skip
    return Capsule(config, blob("0"), (blob("1", 100), blob("2", 200)), blob("3"), blob("4"), blob("5"), blob("6"))


def test_the_plan_is_this_text() -> None:
    made = capsule()
    assert boot.plan(made).decode() == PLAN.format(manifest=made.digest, tree="a" * 64, one="1" * 64, two="2" * 64)


def test_node_files_are_the_same_bytes_for_the_same_keys_and_belong_to_root() -> None:
    data = boot.node_files([KEY])
    assert data == boot.node_files([KEY])
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = {m.name: (m.mode, m.uid, m.gid, m.mtime) for m in archive}
        stream = archive.extractfile("root/.ssh/authorized_keys")
        assert stream is not None
        assert stream.read().decode() == KEY + "\n"
    assert members == {
        "root": (0o700, 0, 0, 0),
        "root/.ssh": (0o700, 0, 0, 0),
        "root/.ssh/authorized_keys": (0o600, 0, 0, 0),
    }
    assert boot.node_files([]) == b""


def script(made: Capsule, **changes: str) -> str:
    words = {"base": "http://h:1", "plan_digest": "sha256:" + "b" * 64, "files_digest": "", "cmdline": ""} | changes
    return boot.script(made, "52-54-00-12-34-56".upper(), servers=(words["base"], "http://rack:2"), **words)


def test_the_script_names_kernel_and_initrd_by_digest_and_everything_else_on_the_command_line() -> None:
    text = script(capsule(), cmdline="quiet", files_digest="sha256:" + "c" * 64)
    kernel = next(line for line in text.splitlines() if line.startswith("kernel "))
    assert text.startswith("#!ipxe\n")
    assert f"http://h:1/blobs/sha256/{'3' * 64} initrd=initrd.img console=ttyS0 quiet " in kernel
    assert "BOOTIF=01-52-54-00-12-34-56 vnfs.server=http://h:1,http://rack:2 " in kernel
    assert f"vnfs.plan=sha256:{'b' * 64} vnfs.files=sha256:{'c' * 64} ||" in kernel
    assert f"initrd --name initrd.img http://h:1/blobs/sha256/{'4' * 64}" in text
    assert "vnfs.files" not in script(capsule())


@pytest.mark.parametrize(
    ("summary", "change"),
    [
        ("a setting of iPXE", {"cmdline": "x=${net0/mac}"}),
        ("another command", {"cmdline": "quiet || shell"}),
        ("yet another command", {"cmdline": "quiet ; shell"}),
        ("a comment", {"cmdline": "quiet #"}),
        ("quotes, which iPXE takes away", {"cmdline": 'dyndbg="file a.c +p"'}),
        ("a line end", {"cmdline": "quiet\nshell"}),
        ("a server that is none", {"base": "http://h:1/ shell"}),
        ("a server of another kind", {"base": "file:///etc/passwd"}),
    ],
)
def test_words_that_ipxe_would_interpret_are_refused(summary: str, change: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        script(capsule(), **change)


def test_a_capsule_cannot_smuggle_commands_into_the_script() -> None:
    with pytest.raises(UsageError):
        script(capsule(cmdline="quiet && shell"))


@pytest.mark.parametrize("text", ["52:54:00:12:34", "52:54:00:12:34:5g", "", "../../etc", "52:54:00:12:34:56\n:"])
def test_what_is_no_mac_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        boot.check_mac(text)


@pytest.mark.parametrize(
    ("summary", "content", "says"),
    [
        ("a private key", "-----BEGIN OPENSSH PRIVATE KEY-----\nx\n", "private key"),
        ("no key", "hello\n", "not a public SSH key"),
        ("nothing", "# only a comment\n", "holds no SSH key"),
    ],
)
def test_files_that_hold_no_public_key_are_named(tmp_path: Path, summary: str, content: str, says: str) -> None:
    path = tmp_path / "key"
    path.write_text(content)
    with pytest.raises(UsageError, match=says) as caught:
        boot.read_keys((path,))
    assert str(path) in caught.value.message


def test_keys_are_read_from_files_with_several(tmp_path: Path) -> None:
    path = tmp_path / "keys.pub"
    path.write_text(f'# admins\n{KEY}\n\nno-pty,command="/bin/true" {KEY}\n')
    assert boot.read_keys((path,)) == (KEY, f'no-pty,command="/bin/true" {KEY}')
