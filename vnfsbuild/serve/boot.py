"""The documents a node boots by: the boot plan, the node files and the iPXE script. All are functions of their input,
so that equal nodes get equal digests, from any server.

The kernel's command line names plan and node files by sha256; the plan names the layers. Whoever trusts the command
line can trust the root.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import jinja2

from vnfsbuild.errors import UsageError
from vnfsbuild.store.manifest import Capsule

_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}\Z")
_KEY = re.compile(r"(?:[a-z0-9][^\n]* )?(?:ssh|ecdsa|sk)-[a-z0-9@.-]+ [A-Za-z0-9+/]+={0,2}(?: [^\n]*)?\Z")
_URL = re.compile(r"https?://[A-Za-z0-9._:/\[\]@+-]{1,1024}\Z")


def check_mac(text: str) -> str:
    """A MAC address as 52:54:00:12:34:56, from any usual spelling. Raises UsageError."""
    mac = text.strip().lower().replace("-", ":")
    if not _MAC.match(mac):
        raise UsageError(f"{text[:64]!r} is not a MAC address", "write it as 52:54:00:12:34:56")
    return mac


def check_url(text: str) -> str:
    """A server's URL without trailing slash, in characters that an iPXE script and a shell leave alone."""
    if not _URL.match(text):
        raise UsageError(f"{text[:200]!r} is not the URL of a server", "write it as http://HOST:PORT")
    return text.rstrip("/")


def check_cmdline(text: str) -> str:
    """Words for a kernel command line. Raises UsageError for what iPXE would interpret: settings, quotes, comments,
    and the words that end a command."""
    words = text.split(" ")
    ends = any(word in {";", "||", "&&"} or word.startswith("#") for word in words)
    if not text.isprintable() or not text.isascii() or ends or "${" in text or any(mark in text for mark in "'\"\\"):
        raise UsageError(
            f"{text[:200]!r} cannot be on a kernel command line that iPXE passes on",
            "leave out quotes, backslashes, ${, #, and the words ; && ||",
        )
    return text.strip()


def check_key(text: str, *, source: str) -> str:
    """One public SSH key (a line of authorized_keys). Raises UsageError naming `source`."""
    line = text.strip()
    if "PRIVATE KEY" in text:
        raise UsageError(f"{source} is a private key", "give the public one, which ends in .pub")
    if not _KEY.match(line) or not line.isprintable():
        raise UsageError(f"{source} is not a public SSH key", "make one with ssh-keygen -t ed25519")
    return line


def read_keys(files: tuple[Path, ...]) -> tuple[str, ...]:
    """Public SSH keys from files, one or more a file. Raises UsageError naming the file that is none."""
    keys = []
    for path in files:
        try:
            lines = path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read the SSH key {path}: {error}") from error
        found = [check_key(line, source=str(path)) for line in lines if line.strip() and not line.startswith("#")]
        if not found:
            raise UsageError(f"{path} holds no SSH key")
        keys += found
    return tuple(keys)


def plan(capsule: Capsule) -> bytes:
    """The boot plan of a version, form `vnfs-plan 1`: lines of words, read by the initrd (see docs/serving.md)."""
    config = capsule.config
    lines = [
        "vnfs-plan 1",
        f"capsule {config.name}",
        f"version {config.version}",
        f"manifest {capsule.digest}",
        f"tree {config.tree}",
        f"kernel {config.kernel.release}",
        f"memory {capsule.memory}",
        *(f"layer {blob.digest} {blob.size}" for blob in capsule.layers),
        "end",
    ]
    return ("\n".join(lines) + "\n").encode()


def node_files(ssh_keys: Sequence[str]) -> bytes:
    """What is laid over the root of a node before its init starts, as a tar; empty when there is nothing to lay."""
    if not ssh_keys:
        return b""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path, mode, data in (
            ("root", 0o700, None),
            ("root/.ssh", 0o700, None),
            ("root/.ssh/authorized_keys", 0o600, "".join(f"{key}\n" for key in ssh_keys).encode()),
        ):
            member = tarfile.TarInfo(path)
            member.type = tarfile.DIRTYPE if data is None else tarfile.REGTYPE
            member.mode = mode
            member.size = len(data or b"")
            archive.addfile(member, io.BytesIO(data or b""))
    return out.getvalue()


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(  # noqa: S701 (an iPXE script, not HTML; every value is checked below)
        loader=jinja2.PackageLoader("vnfsbuild.serve"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("boot.ipxe.j2")


def question(base: str) -> str:
    """The script that makes the firmware come back with its MAC address."""
    return _template().render(capsule="", mac="", base=check_url(base))


def refusal(mac: str) -> str:
    """The script for a node that nothing is meant for."""
    return _template().render(capsule="", mac=check_mac(mac))


def script(
    capsule: Capsule, mac: str, *, base: str, servers: Sequence[str], plan_digest: str, files_digest: str, cmdline: str
) -> str:
    """The iPXE script that boots `capsule` on `mac`: kernel and initrd from `base`, the rest from `servers`.

    Raises UsageError when a value has characters that iPXE would interpret.
    """
    words = [
        capsule.config.kernel.cmdline,
        cmdline,
        f"BOOTIF=01-{check_mac(mac).replace(':', '-')}",
        f"vnfs.server={','.join(check_url(server) for server in servers)}",
        f"vnfs.plan={plan_digest}",
        f"vnfs.files={files_digest}" if files_digest else "",
    ]
    return _template().render(
        capsule=capsule.reference,
        mac=check_mac(mac),
        base=check_url(base),
        kernel=capsule.kernel.hex,
        initrd=capsule.initrd.hex,
        cmdline=check_cmdline(" ".join(word for word in words if word)),
    )
