"""A real docker-registry on loopback, and a TCP proxy that cuts connections, for tests of transfers."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.ports import free_port
from vnfsbuild.host.run import started

_CONFIG = """\
version: 0.1
log: {{level: info, accesslog: {{disabled: false}}}}
storage:
  filesystem: {{rootdirectory: {root}}}
  delete: {{enabled: true}}
http: {{addr: "127.0.0.1:{port}"}}
{auth}"""


@dataclass(frozen=True)
class Registry:
    """`port` on 127.0.0.1; its storage and its log below `root`."""

    port: int
    root: Path

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def __str__(self) -> str:
        return self.host

    @property
    def log(self) -> str:
        return (self.root / "log").read_text()

    def blob(self, digest: str) -> Path:
        """Where the registry keeps the bytes of a blob."""
        name = digest.removeprefix("sha256:")
        return self.root / f"data/docker/registry/v2/blobs/sha256/{name[:2]}/{name}/data"

    def get(self, path: str) -> dict[str, object]:
        with urllib.request.urlopen(f"http://{self.host}{path}", timeout=10) as answer:
            result: dict[str, object] = json.loads(answer.read())
            return result


@contextmanager
def running_registry(root: Path, *, htpasswd: str = "") -> Iterator[Registry]:
    """Start a registry with an empty storage below `root`; it ends with the context."""
    root.mkdir(parents=True, exist_ok=True)
    auth = ""
    if htpasswd:
        (root / "htpasswd").write_text(htpasswd)
        auth = f"auth: {{htpasswd: {{realm: test, path: {root}/htpasswd}}}}\n"
    config = root / "config.yml"
    with ExitStack() as stack:
        log = stack.enter_context(open(root / "log", "wb"))
        for _ in range(3):  # somebody else may take the port before the registry does
            port = free_port()
            config.write_text(_CONFIG.format(root=root / "data", port=port, auth=auth))
            server = stack.enter_context(started(["docker-registry", "serve", config], stdout=log, stderr=log))
            if _listens(server, port):
                break
        else:
            raise AssertionError((root / "log").read_text())
        yield Registry(port, root)


def _listens(server: subprocess.Popen[bytes], port: int) -> bool:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            time.sleep(0.1)  # whoever answers: it is ours if ours still lives
            return server.poll() is None
        time.sleep(0.05)
    return False


@dataclass
class Proxy:
    """Counts what passes, and cuts connections.

    `cut_down` and `cut_up` are how many bytes of one connection pass towards the client or the server before it is
    cut (None: all); `cuts` says how many connections still are to be. `slow` sleeps that long per piece of 64 KiB.
    """

    port: int
    cut_down: int | None = None
    cut_up: int | None = None
    cuts: int = 1_000_000
    slow: float = 0.0
    down: int = 0
    up: int = 0
    cut: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"


@contextmanager
def proxy(target: int, **settings: object) -> Iterator[Proxy]:
    """Listen on loopback and pass connections on to `target`."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.2)
    state = Proxy(listener.getsockname()[1], **settings)  # type: ignore[arg-type]
    stop = threading.Event()
    threads: list[threading.Thread] = []

    def serve() -> None:
        while not stop.is_set():
            try:
                client, _ = listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", target))
            for pair in ((client, server, True), (server, client, False)):
                thread = threading.Thread(target=pump, args=(*pair, (client, server)), daemon=True)
                thread.start()
                threads.append(thread)

    def pump(source: socket.socket, sink: socket.socket, upward: bool, both: tuple[socket.socket, ...]) -> None:
        passed = 0
        with suppress(OSError):
            while not stop.is_set() and (data := source.recv(1 << 16)):
                limit = state.cut_up if upward else state.cut_down
                if limit is not None and passed + len(data) > limit:
                    with state.lock:
                        wanted = state.cuts > 0
                        state.cuts -= wanted
                        state.cut += wanted
                    if wanted:
                        sink.sendall(data[: limit - passed])
                        break
                passed += len(data)
                with state.lock:
                    if upward:
                        state.up += len(data)
                    else:
                        state.down += len(data)
                sink.sendall(data)
                if state.slow:
                    time.sleep(state.slow)
        for end in both:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    acceptor = threading.Thread(target=serve, daemon=True)
    acceptor.start()
    try:
        yield state
    finally:
        stop.set()
        listener.close()
        acceptor.join(5)
