"""A trial machine: QEMU that boots as a node does, by iPXE over HTTP from the serving application of this process.

Firmware is SeaBIOS with QEMU's own iPXE ROM; the network is QEMU's user network, so no privilege and no bridge is
needed. The machine has no disk, and it ends with its context.
"""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import IO

from vnfsbuild.errors import HostError, NetworkError, UsageError, VnfsError
from vnfsbuild.host.interrupt import resource
from vnfsbuild.host.run import end, started
from vnfsbuild.model import Reference
from vnfsbuild.serve.app import ServeConfig, make_app
from vnfsbuild.serve.server import serving
from vnfsbuild.store.capsules import Store

# The host, as QEMU's user network shows it to the guest.
_GATEWAY = "10.0.2.2"
_TAIL = 20
_KEPT = 4 << 20
_MEMORY = re.compile(r"[1-9][0-9]{0,6}[MG]\Z")
_LOGIN = re.compile(rb"[\w.-]+ login: ")
# The end of a boot, or of a kernel. With vnfs.onfail=halt QEMU ends a moment later.
_REFUSED = re.compile(rb"vnfs: [^\r\n]*(?:refusing to boot|halting)|Kernel panic")
_CONTROL = re.compile(r"\x1b\[[0-9;?=]*[A-Za-z]|\x1b[()][A-Z0-9]|[\x00-\x08\x0b-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Hardware:
    """`memory` as QEMU reads it (3G); `ssh_port` of 127.0.0.1 leads to the guest's port 22 (0: a free one); `accel`
    is QEMU's word: tcg works everywhere, kvm is for hosts that can.

    One processor by default: under TCG, QEMU before 8.1 shows a running processor a changed memory map before it has
    dropped what it remembers of the old one, and dies of it now and then (mended by "softmmu: Use async_run_on_cpu in
    tcg_commit"). A second processor makes a boot about a sixth shorter.
    """

    memory: str = "3G"
    cpus: int = 1
    mac: str = "52:54:00:12:34:56"
    ssh_port: int = 0
    accel: str = "tcg,thread=multi"


class Guest:
    """A machine that runs. `console` is what its serial console said so far, the last few megabytes of it."""

    def __init__(self, process: subprocess.Popen[bytes], hardware: Hardware, sinks: tuple[IO[bytes], ...]) -> None:
        self.process = process
        self.hardware = hardware
        self.started = time.monotonic()
        self.console = b""
        self._sinks = sinks
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, name="vnfs-console", daemon=True)
        self._reader.start()

    @property
    def ssh_port(self) -> int:
        return self.hardware.ssh_port

    @property
    def seconds(self) -> float:
        """How long it runs."""
        return time.monotonic() - self.started

    def text(self) -> str:
        """The console without terminal control."""
        return _CONTROL.sub("", self.console.decode(errors="replace"))

    def type(self, data: bytes) -> None:
        """Send keystrokes to the console."""
        if self.process.stdin:
            with suppress(BrokenPipeError):
                self.process.stdin.write(data)
                self.process.stdin.flush()

    def wait_for(self, pattern: bytes | re.Pattern[bytes], *, timeout: float) -> re.Match[bytes]:
        """Wait until the console shows `pattern`. Raises VnfsError when it refuses to boot, ends or takes too long."""
        compiled = re.compile(pattern) if isinstance(pattern, bytes) else pattern
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                if found := compiled.search(self.console):
                    return found
                if _REFUSED.search(self.console):
                    self._changed.wait(2.0)
                    raise self._problem("the node does not boot")
                if not self._reader.is_alive():
                    raise self._problem(self._ending())
                if time.monotonic() >= deadline:
                    raise self._problem(f"no {compiled.pattern.decode(errors='replace')!r} after {timeout:.0f} s")
                self._changed.wait(min(1.0, deadline - time.monotonic()))

    def wait_login(self, *, timeout: float) -> None:
        """Wait for the login prompt."""
        self.wait_for(_LOGIN, timeout=timeout)

    def wait_ssh(self, *, timeout: float) -> None:
        """Wait until an SSH server in the guest says its name. Raises NetworkError."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and self._reader.is_alive():
            # The user network accepts at once; only the banner comes from the guest.
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.ssh_port), 5) as connection:
                connection.settimeout(5)
                if connection.recv(64).startswith(b"SSH-"):
                    return
            time.sleep(0.3)
        raise NetworkError(f"nobody answers ssh on 127.0.0.1:{self.ssh_port} after {timeout:.0f} s")

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the machine ends. Raises VnfsError when it takes longer than `timeout` seconds."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise self._problem(f"the machine still runs after {timeout:.0f} s") from None

    def finish(self) -> None:
        """Take in what an ended machine said last."""
        self._reader.join(5.0)

    def _ending(self) -> str:
        code = self.wait(5.0)
        return "the machine ended" if code >= 0 else f"QEMU ended by {signal.Signals(-code).name}"

    def _problem(self, what: str) -> VnfsError:
        lines = [line for line in self.text().splitlines() if line.strip()]
        said = [line for line in lines if line.startswith("vnfs: ")][-3:] if _REFUSED.search(self.console) else []
        return VnfsError(what + "".join(f"\n  | {line}" for line in said or lines[-_TAIL:]), "--console FILE keeps all")

    def _read(self) -> None:
        stream = self.process.stdout
        assert stream is not None
        with suppress(ValueError, OSError):
            while piece := stream.read1(65536):  # type: ignore[attr-defined]
                for sink in self._sinks:
                    sink.write(piece)
                    sink.flush()
                with self._changed:
                    self.console = (self.console + piece)[-_KEPT:]
                    self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()


def command(hardware: Hardware, *, script: str) -> list[str]:
    """QEMU's command line for a machine that boots from the iPXE script at the URL `script`."""
    if not _MEMORY.match(hardware.memory):
        raise UsageError(f"{hardware.memory!r} is no amount of memory", "write it as 3G or 3072M")
    forward = f"hostfwd=tcp:127.0.0.1:{hardware.ssh_port}-:22"
    return [
        *("qemu-system-x86_64", "-machine", "pc,graphics=off", "-accel", hardware.accel),
        *("-m", hardware.memory, "-smp", str(hardware.cpus), "-cpu", "max" if "tcg" in hardware.accel else "host"),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-vga", "none"),
        *("-serial", "stdio", "-monitor", "none"),
        *("-netdev", f"user,id=net0,bootfile={script},{forward}"),
        *("-device", f"virtio-net-pci,netdev=net0,mac={hardware.mac}"),
        *("-device", "virtio-rng-pci", "-boot", "n"),
    ]


@resource
def machine(hardware: Hardware, *, script: str, sinks: tuple[IO[bytes], ...] = ()) -> Iterator[Guest]:
    """A running machine; it ends with the context. `sinks` get what its console says, as it says it."""
    if not hardware.ssh_port:
        hardware = replace(hardware, ssh_port=_free_port())
    argv = command(hardware, script=script)
    with started(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        guest = Guest(process, hardware, sinks)
        try:
            yield guest
        finally:
            end(process)
            guest.finish()


@contextmanager
def booted(
    store: Store,
    reference: Reference,
    *,
    hardware: Hardware,
    ssh_keys: tuple[str, ...] = (),
    cmdline: str = "",
    sinks: tuple[IO[bytes], ...] = (),
    hear: Callable[[str], None] = lambda _line: None,
) -> Iterator[Guest]:
    """Serve `reference` from `store` on a free port of 127.0.0.1 and start a machine that boots it. The machine is
    starting, not up: see Guest.wait_login. A failed boot halts it. Leaving the context ends machine and server."""
    capsule = store.get(reference)
    config = ServeConfig(
        # The very version, even when a newer one is published while the machine runs.
        capsule=Reference(capsule.config.name, digest=capsule.digest),
        ssh_keys=ssh_keys,
        cmdline=f"{cmdline} vnfs.onfail=halt".strip(),
        hear=hear,
    )
    with (
        serving(make_app(store, config)) as port,
        machine(hardware, script=f"http://{_GATEWAY}:{port}/boot.ipxe", sinks=sinks) as guest,
    ):
        yield guest


def _free_port() -> int:
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])
    except OSError as error:
        raise HostError(f"no free port on 127.0.0.1: {error.strerror}") from error
