"""The only place that starts a process.

Children run in a process group of their own with a small, fixed environment; whatever ends us early (an exception,
Ctrl-C) ends them too. A failure carries the command, ready to paste, and the last lines it printed.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from vnfsbuild.errors import CommandFailed, ProgramMissing
from vnfsbuild.host.interrupt import held, resource

# Program to the Debian package that has it; `vnfs doctor` reads it too.
PACKAGES: Mapping[str, str] = {
    "apt-get": "apt",
    "chroot": "coreutils",
    "docker-registry": "docker-registry",
    "dpkg-deb": "dpkg",
    "gpgv": "gpgv",
    "losetup": "mount",
    "mksquashfs": "squashfs-tools",
    "mount": "mount",
    "qemu-system-x86_64": "qemu-system-x86",
    "rsync": "rsync",
    "ssh": "openssh-client",
    "tar": "tar",
    "umount": "mount",
    "unshare": "util-linux",
    "unsquashfs": "squashfs-tools",
}

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1
_TAIL_LINES = 20
_UMASK = 0o022
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment children get: the same on every host, so that no locale or user setting leaks into a build.
    Their umask is 022 for the same reason."""
    base = {"PATH": _PATH, "HOME": os.environ.get("HOME", "/root"), "LC_ALL": "C.UTF-8", "TZ": "UTC"}
    return base | dict(extra or {})


@dataclass(frozen=True, slots=True)
class Result:
    """What a finished program said. `output` holds standard output, and standard error too where they were joined."""

    argv: tuple[str, ...]
    returncode: int
    output: bytes
    errors: bytes = b""

    @property
    def text(self) -> str:
        return self.output.decode(errors="replace")


def which(program: str) -> str:
    """Return the path of `program`, or raise ProgramMissing that says how to install it."""
    found = shutil.which(program, path=_PATH)
    if not found:
        package = PACKAGES.get(program, program)
        raise ProgramMissing(f"the program {program} is not installed", f"apt-get install {package}")
    return found


def end(process: subprocess.Popen[bytes], *, patience: float = 3.0) -> None:
    """End a process group we started: ask, wait `patience` seconds, then kill."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)


def run(
    argv: Sequence[str | Path],
    *,
    stdin: bytes | IO[bytes] | None = None,
    stdout: IO[bytes] | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    join: bool = False,
    check: bool = True,
    timeout: float | None = None,
    on_line: Callable[[str], None] | None = None,
    pass_fds: Sequence[int] = (),
    what: str = "",
) -> Result:
    """Run a program to its end and return what it printed.

    `join` mixes standard error into the output; `on_line` hears each line of the output as it comes (and joins).
    `stdout` takes the output instead of memory. `what` names the job in an error, else the program is named.
    Raises ProgramMissing; with `check`, CommandFailed; TimeoutExpired is reported as CommandFailed.
    """
    words = [os.fspath(word) for word in argv]
    words[0] = which(words[0]) if "/" not in words[0] else words[0]
    source = subprocess.PIPE if isinstance(stdin, bytes) else (stdin if stdin is not None else subprocess.DEVNULL)
    process = None
    try:
        with held():  # a signal must not find it started, and nobody knowing of it
            process = subprocess.Popen(
                words,
                stdin=source,
                stdout=stdout if stdout is not None else subprocess.PIPE,
                stderr=subprocess.STDOUT if join or on_line else subprocess.PIPE,
                cwd=cwd,
                env=environment(env),
                process_group=0,
                umask=_UMASK,
                pass_fds=pass_fds,
            )
        if on_line:
            output, errors = _follow(process, stdin if isinstance(stdin, bytes) else None, on_line), b""
        else:
            output, errors = process.communicate(stdin if isinstance(stdin, bytes) else None, timeout=timeout)
    except BaseException as error:
        if process:
            with held():
                end(process)
        if isinstance(error, subprocess.TimeoutExpired):
            raise CommandFailed(words, -signal.SIGKILL, f"gave no answer in {timeout} s", what=what) from None
        raise
    result = Result(tuple(words), process.returncode, output or b"", errors or b"")
    if check and result.returncode != 0:
        raise CommandFailed(words, result.returncode, tail(result), what=what)
    return result


def _follow(process: subprocess.Popen[bytes], data: bytes | None, on_line: Callable[[str], None]) -> bytes:
    if process.stdin and data is not None:
        process.stdin.write(data)
        process.stdin.close()
    lines: list[bytes] = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        on_line(line.decode(errors="replace").rstrip("\n"))
    process.wait()
    return b"".join(lines)


def tail(result: Result, lines: int = _TAIL_LINES) -> str:
    """The last lines a program printed, errors first choice."""
    text = (result.errors.strip() or result.output).decode(errors="replace")
    return "\n".join(text.rstrip().splitlines()[-lines:])


def interactive(argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None) -> int:
    """Run a program on the caller's own terminal and return its exit code. It shares our process group, so that
    job control and Ctrl-C reach it as in any shell; we wait for it whatever the terminal sends."""
    words = [os.fspath(word) for word in argv]
    words[0] = which(words[0]) if "/" not in words[0] else words[0]
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    process = None
    try:
        with held():
            process = subprocess.Popen(words, env=environment(env), restore_signals=True, preexec_fn=_as_a_shell_would)  # noqa: PLW1509
        return process.wait()
    except BaseException:
        if process:
            # unshare waits with SIGTERM blocked, and its child is an init, which none reaches that it has no handler
            # for: patience is for other programs. The death of unshare is the end of all in its namespace.
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(1.0)
            process.kill()
            process.wait()
        raise
    finally:
        signal.signal(signal.SIGINT, previous)


def _as_a_shell_would() -> None:
    """In the child: Ctrl-C ends it, and so does our own end, kill -9 included."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@resource
def started(
    argv: Sequence[str | Path],
    *,
    stdin: int | IO[bytes] | None = None,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program that runs beside us (a server, QEMU, a packer fed by a pipe); leaving the context ends it."""
    words = [os.fspath(word) for word in argv]
    words[0] = which(words[0]) if "/" not in words[0] else words[0]
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL if stdin is None else stdin,
        stdout=stdout,
        stderr=stderr,
        cwd=cwd,
        env=environment(env),
        process_group=0,
        umask=_UMASK,
    )
    try:
        yield process
    finally:
        end(process)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                with suppress(OSError):
                    stream.close()
