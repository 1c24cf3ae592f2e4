"""`vnfs serve` and `vnfs boot`: capsules for nodes, and a node to try one on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from vnfsbuild.cli.common import App, command, identity
from vnfsbuild.errors import HostError, UsageError
from vnfsbuild.host.interrupt import resource
from vnfsbuild.model import Reference

if TYPE_CHECKING:
    from vnfsbuild.serve.qemu import Guest
    from vnfsbuild.store.manifest import Capsule

_READABLE = click.Path(path_type=Path, dir_okay=False)


def _require_aiohttp() -> None:
    try:
        import aiohttp  # noqa: F401
        import jinja2  # noqa: F401
    except ImportError as error:
        raise HostError(f"serving needs the Python package {error.name}", "pip install 'vnfs[serve]'") from error


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"--listen {text!r} is not ADDRESS:PORT", "for example --listen 0.0.0.0:8080")
    return host.strip("[]"), int(port)


@command("serve", example="vnfs serve compute --listen 10.0.0.1:8080 --ssh-key ~/.ssh/id_ed25519.pub")
@click.argument("name", required=False)
@click.option("--listen", default="0.0.0.0:8080", show_default=True, help="Address and port.")
@click.option("--ssh-key", "ssh_keys", type=_READABLE, multiple=True, help="Public key that may log in as root.")
@click.option("--cmdline", default="", help="More words for the kernel's command line.")
@click.option("--url", default="", help="How nodes reach this server; default: as they asked for it.")
@click.option("--mirror", "mirrors", multiple=True, help="URL of another server with the same capsules.")
@click.option("--report-log", type=_READABLE, help="Append what nodes report here, a JSON line each.")
def serve_command(
    app: App,
    name: str | None,
    listen: str,
    ssh_keys: tuple[Path, ...],
    cmdline: str,
    url: str,
    mirrors: tuple[str, ...],
    report_log: Path | None,
) -> None:
    """Hand capsules to booting nodes over HTTP, until Ctrl-C.

    NAME is what nodes boot; a bare name follows the newest version. Point the nodes' iPXE (or the DHCP server's boot
    file name) at http://ADDRESS:PORT/boot.ipxe.
    """
    _require_aiohttp()
    from vnfsbuild.serve.app import ServeConfig, make_app
    from vnfsbuild.serve.boot import read_keys
    from vnfsbuild.serve.server import serve_forever

    reference = Reference.parse(name) if name else None
    if reference:
        app.store.get(reference)
    host, port = _address(listen)
    config = ServeConfig(
        capsule=reference,
        ssh_keys=read_keys(ssh_keys),
        cmdline=cmdline,
        url=url,
        mirrors=mirrors,
        report_log=report_log,
        hear=app.monitor.note,
    )

    def ready(bound: int) -> None:
        where = f"http://{host or '*'}:{bound}"
        app.emit({"url": where, "capsule": name}, f"serving {name or 'the store, no capsule for nodes'} at {where}")
        sys.stdout.flush()

    serve_forever(make_app(app.store, config), host, port, ready=ready)


@command("boot", example="vnfs boot compute:1 --ssh-key ~/.ssh/id_ed25519.pub --until login")
@click.argument("name")
@click.option("--memory", default="3G", show_default=True, help="Memory of the machine.")
@click.option(
    "--cpus",
    default=1,
    show_default=True,
    type=click.IntRange(1, 256),
    help="Processors of the machine; QEMU before 8.1 can crash with more than one, except with kvm.",
)
@click.option("--ssh-key", "ssh_keys", type=_READABLE, multiple=True, help="Public key that may log in as root.")
@click.option("--ssh-port", default=0, type=click.IntRange(0, 65535), help="Local port for ssh; default: a free one.")
@click.option("--console", type=_READABLE, help="Write the serial console to a file instead of the terminal.")
@click.option("--until", type=click.Choice(["login"]), help="End, with success, when this is reached.")
@click.option("--timeout", default=600.0, show_default=True, help="Seconds until login, else it failed.")
@click.option("--cmdline", default="", help="More words for the kernel's command line.")
@click.option("--accel", default="tcg,thread=multi", show_default=True, help="QEMU's accelerator, such as kvm.")
def boot_command(
    app: App,
    name: str,
    memory: str,
    cpus: int,
    ssh_keys: tuple[Path, ...],
    ssh_port: int,
    console: Path | None,
    until: str | None,
    timeout: float,
    cmdline: str,
    accel: str,
) -> None:
    """Start a capsule in QEMU, on the way a node takes: iPXE, kernel, initrd and layers over HTTP.

    The machine lives until it powers off or Ctrl-C ends it; with --until login, until it answers (on ssh too where a
    key is given).
    """
    _require_aiohttp()
    from vnfsbuild.serve.boot import read_keys
    from vnfsbuild.serve.qemu import Hardware, booted

    reference = Reference.parse(name)
    capsule = app.store.get(reference)
    keys = read_keys(ssh_keys)
    hardware = Hardware(memory=memory, cpus=cpus, ssh_port=ssh_port, accel=accel)
    with ExitStack() as stack:
        sinks: tuple[IO[bytes], ...] = (sys.stderr.buffer if app.json else sys.stdout.buffer,)
        if console:
            sinks = (stack.enter_context(console.open("wb")),)
        step = stack.enter_context(app.monitor.step(f"boot {capsule.reference}")) if console else app.monitor
        guest = stack.enter_context(
            booted(app.store, reference, hardware=hardware, ssh_keys=keys, cmdline=cmdline, sinks=sinks, hear=step.note)
        )
        if not console:
            stack.enter_context(_keyboard(guest))
        guest.wait_login(timeout=timeout)
        if keys:
            guest.wait_ssh(timeout=max(timeout - guest.seconds, 1.0))
        _ready(app, capsule, guest)
        if not until:
            guest.wait()


def _ready(app: App, capsule: Capsule, guest: Guest) -> None:
    seconds = round(guest.seconds, 1)
    record = {
        **identity(capsule),
        "seconds": seconds,
        "ssh": f"root@127.0.0.1:{guest.ssh_port}",
    }
    app.emit(record, f"\n{capsule.reference} is up after {seconds} s; ssh -p {guest.ssh_port} root@127.0.0.1")
    sys.stdout.flush()


@resource
def _keyboard(guest: Guest) -> Iterator[None]:
    """While open, what is typed goes to the machine's console, key by key; Ctrl-C stays ours."""
    if not sys.stdin.isatty():
        yield
        return
    import os
    import termios
    import threading
    import tty

    descriptor = sys.stdin.fileno()
    saved = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)

    def forward() -> None:
        with suppress(OSError):
            while keys := os.read(descriptor, 256):
                guest.type(keys)

    threading.Thread(target=forward, name="vnfs-keyboard", daemon=True).start()
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, saved)
