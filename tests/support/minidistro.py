"""A distribution small enough to build a root of it in a second, without a network.

Its one essential package holds this host's own dpkg, dash, coreutils and what they are linked with, so that unpacking,
scripts, triggers and the package database are the real ones. The kernel is a file of noise with modules of noise:
enough for everything but booting.
"""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.aptrepo import Deb, HttpServer, Repository, Signer
from tests.support.program import VNFS

PROGRAMS = (
    *("cat", "chgrp", "chmod", "chown", "cp", "dash", "date", "diff", "dirname", "dpkg", "dpkg-deb", "dpkg-divert"),
    *("dpkg-query", "dpkg-split", "dpkg-statoverride", "dpkg-trigger", "env", "find", "grep", "head", "id", "install"),
    *("ln", "ls", "mkdir", "mktemp", "mv", "readlink", "rm", "rmdir", "sed", "sha256sum", "sleep", "sort", "stat"),
    *("tar", "test", "touch", "true", "update-alternatives", "wc"),
)
SYSTEM_PROGRAMS = ("ldconfig", "ldconfig.real", "start-stop-daemon")
RELEASE = "6.1.0-0-test"
_BUILTIN = ("kernel/fs/squashfs/squashfs.ko", "kernel/fs/overlayfs/overlay.ko", "kernel/drivers/block/loop.ko")
_PASSWD = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"


def _linked(program: Path) -> set[Path]:
    """The libraries a program needs, by the paths its loader finds them at, below /usr."""
    text = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
    found = {Path(path) for path in re.findall(r"(/[^\s(]+\.so[^\s(]*)", text)}
    return {path if path.is_relative_to("/usr") else Path("/usr") / path.relative_to("/") for path in found}


@functools.cache
def essential() -> Deb:
    """Everything that dpkg and shell scripts need, from this host."""
    wanted = {Path("/usr/bin") / name for name in PROGRAMS} | {Path("/usr/sbin") / name for name in SYSTEM_PROGRAMS}
    wanted = {path for path in wanted if path.exists()}
    wanted |= {library for path in sorted(wanted) for library in _linked(path)}
    files: dict[str, tuple[int, bytes] | str] = {
        str(path.relative_to("/")): (path.stat().st_mode & 0o7777, path.read_bytes()) for path in sorted(wanted)
    }
    files |= {"usr/bin/sh": "dash", "etc/passwd": (0o644, _PASSWD), "etc/group": (0o644, b"root:x:0:\n")}
    files |= {"etc/machine-id": (0o444, b"0123456789abcdef0123456789abcdef\n"), "var/log/dpkg.log": (0o644, b"noise\n")}
    return Deb("mini-base", "1.0", arch="amd64", essential=True, priority="required", files=files)


def kernel() -> Deb:
    """A package that looks like a kernel to everything but a boot loader."""
    modules = f"usr/lib/modules/{RELEASE}"
    return Deb(
        "mini-kernel",
        "6.1",
        arch="amd64",
        files={
            f"boot/vmlinuz-{RELEASE}": (0o644, b"not a kernel" * 1000),
            f"boot/config-{RELEASE}": (0o644, b"CONFIG_RD_ZSTD=y\nCONFIG_SQUASHFS_ZSTD=y\n"),
            f"{modules}/modules.builtin": (0o644, "\n".join(_BUILTIN).encode() + b"\n"),
            f"{modules}/modules.dep": (0o644, b"kernel/drivers/net/dummy.ko:\n"),
            f"{modules}/kernel/drivers/net/dummy.ko": (0o644, b"\x7fELF not really"),
            f"{modules}/modules.alias": (0o644, b""),
            f"{modules}/modules.softdep": (0o644, b""),
        },
    )


def busybox() -> Deb:
    """The package whose program the initrd takes along."""
    return Deb("busybox-static", "1.0", arch="amd64", files={"bin/busybox": (0o755, b"\x7fELF not really")})


@dataclass
class Site:
    """A mirror with a mini distribution, and a place for stores, caches and recipes; `mirror` can be made to fail."""

    place: Path
    repository: Repository
    mirror: HttpServer
    keyring: Path
    env: dict[str, str] = field(default_factory=dict)

    def publish(self, *debs: Deb, **options: object) -> None:
        """Make these packages, and the base ones, what the mirror has."""
        self.repository.write_distribution("debian", "bookworm", [essential(), kernel(), busybox(), *debs], **options)

    def recipe(self, text: str = "", *, include: str = '"mini-kernel"', name: str = "mini") -> Path:
        """Write a recipe on top of the mini distribution."""
        path = self.place / f"{name}.toml"
        path.write_text(
            f'name = "{name}"\n[distro]\nid = "debian"\nsuite = "bookworm"\narch = "amd64"\n'
            f'mirror = "{self.mirror.url}"\nkeyring = "{self.keyring}"\n'
            f"[packages]\ninclude = [{include}]\n{text}\n"
        )
        return path

    def command(self, *words: str | Path) -> list[str]:
        return [*VNFS, *map(str, words)]

    def run(
        self, *words: str | Path, code: int = 0, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run vnfs and check its exit code."""
        done = subprocess.run(
            self.command(*words),
            env=self.environment() | (env or {}),
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=120,
        )
        assert done.returncode == code, f"answered {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done

    def json(self, *words: str | Path, code: int = 0) -> dict[str, object]:
        answer: dict[str, object] = json.loads(self.run(*words, "--json", "--progress", "none", code=code).stdout)
        return answer

    def environment(self) -> dict[str, str]:
        here = {
            key: str(self.place / key.removeprefix("VNFS_").lower())
            for key in ("VNFS_STORE", "VNFS_CACHE", "VNFS_WORK")
        }
        return os.environ | here | self.env

    def interrupt(
        self, *words: str | Path, number: int, when: Callable[[str], bool]
    ) -> subprocess.CompletedProcess[str]:
        """Run vnfs, and send it a signal when a line of its progress makes `when` true."""
        process = subprocess.Popen(
            self.command(*words, "--progress", "plain"),
            env=self.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert process.stderr
        said = ""
        for line in process.stderr:
            said += line
            if when(line):
                os.kill(process.pid, number)
                break
        said += process.stderr.read()
        return subprocess.CompletedProcess(process.args, process.wait(60), "", said)

    def is_clean(self) -> bool:
        """Whether nothing of ours is left: no mount, process or scratch directory, and a store that verifies."""
        deadline = time.monotonic() + 5
        while (left := self.leftovers()) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not left, left
        self.run("verify", "--progress", "none")
        return True

    def leftovers(self) -> list[str]:
        place = str(self.place)
        found = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if place in line]
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    words = (entry / "cmdline").read_bytes().decode(errors="replace")
                    root = str((entry / "root").readlink())
                except OSError:
                    continue
                if place in words or root.startswith(place):
                    found.append(f"process {entry.name}: {words}")
        work = self.place / "work"
        found += [str(path) for path in work.glob("*")] if work.is_dir() else []
        ingest = self.place / "store" / "ingest"
        return found + ([str(path) for path in ingest.glob("put-*")] if ingest.is_dir() else [])


@contextmanager
def mini_site(place: Path, signer: Signer) -> Iterator[Site]:
    """A site with a fresh mirror."""
    root = place / "mirror"
    root.mkdir()
    with HttpServer(root) as server:
        site = Site(place, Repository(root, signer), server, signer.keyring)
        site.publish()
        yield site


INTERRUPT = signal.SIGINT
KILL = signal.SIGKILL
