"""The way to a node: one ssh connection that everything shares, and rsync over it.

The node-side program (`node/livesync.sh`) is handed to the node's shell with each call; nothing is installed there.
All that a node says is bounded and checked for form here, before anything else sees it. Host keys are checked as ssh
itself would: nothing here makes that weaker than asked.
"""

from __future__ import annotations

import hashlib
import os
import selectors
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from vnfsbuild.deliver.livesync.nodes import Node
from vnfsbuild.errors import Busy, CommandFailed, NetworkError, TrustError, VnfsError
from vnfsbuild.host.fs import make_directory, work_directory
from vnfsbuild.host.run import started

PROGRAM = Path(__file__).with_name("node") / "livesync.sh"
_ANSWER = 256 << 20
_ERRORS = 16 << 10
_PATIENCE = 900.0


@dataclass(frozen=True, slots=True)
class Ssh:
    """How to connect. `known_hosts` is a file for host keys of its own; with `accept_new`, keys of hosts that are
    not in it yet are taken on trust and kept there, and a changed key is refused all the same."""

    identity: Path | None = None
    options: tuple[str, ...] = ()
    known_hosts: Path | None = None
    accept_new: bool = False
    timeout: int = 15

    def argv(self, node: Node) -> list[str]:
        """The ssh command up to the host's name, which follows."""
        words = ["ssh", "-T", "-a", "-x", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={self.timeout}"]
        words += ["-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4", "-o", "ClearAllForwardings=yes"]
        for option in self.options:
            words += ["-o", option]
        if self.identity:
            words += ["-i", str(self.identity), "-o", "IdentitiesOnly=yes"]
        if self.known_hosts:
            words += ["-o", f'UserKnownHostsFile="{self.known_hosts}"']
        if self.accept_new:
            words += ["-o", "StrictHostKeyChecking=accept-new"]
        if node.port:
            words += ["-p", str(node.port)]
        return [*words, *(["-l", node.user] if node.user else [])]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def join(items: Sequence[str]) -> bytes:
    """A list as the node-side program reads it."""
    return b"".join(os.fsencode(item) + b"\0" for item in items)


class Connection:
    """An open connection to a node. Made by `connect`; calls are not for several threads at once."""

    def __init__(self, node: Node, scratch: Path, socket: Path, stop: threading.Event) -> None:
        self.node = node
        self._scratch = scratch
        self._stop = stop
        # Without the socket ssh would connect anew, under a name that is none: the proxy command forbids that.
        self._argv = ["ssh", "-T", "-o", f"ControlPath={socket}", "-o", "ControlMaster=no", "-o", "BatchMode=yes"]
        self._argv += ["-o", "ProxyCommand=false"]

    def call(self, word: str, *arguments: str, items: bytes | None = None, limit: int = _ANSWER) -> bytes:
        """Run one word of the node-side program and return what it printed, at most `limit` bytes.

        `items` goes to its standard input, and its sha256 to the front of the arguments. Raises CommandFailed with
        the node's words, NetworkError when the connection is gone, TrustError when the answer is too long.
        """
        words = [*([_digest(items)] if items is not None else []), *arguments]
        script = PROGRAM.read_text()
        remote = shlex.join(["exec", "sh", "-c", script, "livesync", word, *words])
        code, output, errors = self._exchange([*self._argv, "node", remote], items or b"", limit)
        if code == 255:
            raise NetworkError(f"{self.node}: the connection broke off during {word}: {_words(errors)}", "run it again")
        if code != 0:
            raise CommandFailed(
                ["ssh", str(self.node)],
                code,
                _words(errors),
                what=f"{self.node}: {word}",
                hint="run it again when mended",
            )
        return output

    def send(self, view: Path, items: Sequence[str], target: str) -> None:
        """Copy paths of `view` (absolute ones, as in a table of contents) below the directory `target` of the node.

        What is there already, by content, is not sent again. Raises CommandFailed.
        """
        wrapper = self._scratch / "ssh.sh"
        wrapper.write_text(f'exec {shlex.join(self._argv)} "$@"\n')
        argv = ["rsync", "-lptgoDHX", "--numeric-ids", "--checksum", "--from0", "--files-from=-", "--no-implied-dirs"]
        argv += ["--partial", "--filter=-x user.*", "--filter=-x security.selinux", "-e", f"sh {wrapper}"]
        code, _, errors = self._exchange([*argv, f"{view}/", f"node:{target}/"], join(items), _ANSWER)
        if code != 0:
            hint = "free memory on the node, or change less at once" if b"No space left" in errors else "run it again"
            raise CommandFailed(["rsync"], code, _words(errors), what=f"{self.node}: sending files", hint=hint)

    def _exchange(self, argv: Sequence[str], stdin: bytes, limit: int) -> tuple[int, bytes, bytes]:
        with tempfile.TemporaryFile(dir=self._scratch) as source:
            source.write(stdin)
            source.seek(0)
            with started(argv, stdin=source, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
                output, errors = _listen(process, limit, self._stop, str(self.node))
                return process.wait(), output, errors


def _listen(process: subprocess.Popen[bytes], limit: int, stop: threading.Event, who: str) -> tuple[bytes, bytes]:
    """Read both streams to their ends: all of the first up to `limit`, the last of the second."""
    assert process.stdout is not None
    assert process.stderr is not None
    chunks: list[bytes] = []
    size, errors, heard = 0, b"", time.monotonic()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        selector.register(process.stderr, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(0.25)
            if stop.is_set():
                raise VnfsError(f"{who}: interrupted", "run it again: it finishes what was begun")
            if not ready and time.monotonic() - heard > _PATIENCE:
                raise NetworkError(f"{who} said nothing for {_PATIENCE:.0f} s", "look at the node")
            for key, _ in ready:
                heard = time.monotonic()
                data = os.read(key.fd, 1 << 16)
                if not data:
                    selector.unregister(key.fileobj)
                elif key.fileobj is process.stderr:
                    errors = (errors + data)[-_ERRORS:]
                else:
                    chunks.append(data)
                    size += len(data)
                if size > limit:
                    raise TrustError(f"{who} answered with more than {limit} bytes", "look at the node")
    return b"".join(chunks), errors


def _words(errors: bytes) -> str:
    """What a node printed, fit for our terminal."""
    text = errors.decode(errors="replace").strip()
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)[-2000:]


@contextmanager
def connect(node: Node, ssh: Ssh, *, exclusive: bool, stop: threading.Event) -> Iterator[Connection]:
    """Connect to a node; with `exclusive`, keep other livesyncs off it until the context ends.

    The lock and everything else that holds the connection dies with it, and it dies with us. Raises NetworkError
    when the node cannot be reached, Busy when another livesync is at it.
    """
    if ssh.known_hosts:
        make_directory(ssh.known_hosts.parent)
    # A socket's path may be 108 bytes long: it cannot lie below a directory that somebody else chose.
    with work_directory(Path(tempfile.gettempdir()), "vnfs-ssh") as scratch:
        socket = scratch / "s"
        script = PROGRAM.read_text()
        remote = shlex.join(["sh", "-c", script, "livesync", "hold" if exclusive else "look"])
        argv = [*ssh.argv(node), "-M", "-S", str(socket), "--", node.host, remote]
        with (
            open(scratch / "errors", "w+b") as errors,
            started(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors) as process,
        ):
            assert process.stdout is not None
            said = _first_line(process.stdout, ssh.timeout * 2 + 15, stop)
            if said == b"busy":
                raise Busy(f"{node}: another livesync is at work there", "wait for it to finish")
            if said != b"ready":
                errors.seek(0)
                raise _unreachable(node, errors.read(_ERRORS))
            yield Connection(node, scratch, socket, stop)
            with suppress(OSError):
                process.stdin.close()  # type: ignore[union-attr]
            with suppress(subprocess.TimeoutExpired):
                process.wait(3)


def _unreachable(node: Node, errors: bytes) -> NetworkError:
    words = _words(errors)
    port = f"-p {node.port} " if node.port else ""
    hint = f"try: ssh {port}{node.user + '@' if node.user else ''}{node.host}"
    if "Host key verification failed" in words:
        hint = "compare the host's key and add it to known_hosts; for nodes seen for the first time: --accept-new"
    elif "Permission denied" in words:
        hint = "name the key with --identity; root logs in with the key that the node was booted with"
    return NetworkError(f"{node} cannot be reached: {words or 'no answer'}", hint)


def _first_line(stream: IO[bytes], patience: float, stop: threading.Event) -> bytes:
    line, end = b"", time.monotonic() + patience
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while b"\n" not in line and len(line) < 4096 and time.monotonic() < end and not stop.is_set():
            if selector.select(0.25):
                data = os.read(stream.fileno(), 4096)
                if not data:
                    break
                line += data
    return line.strip().splitlines()[-1] if line.strip() else b""
