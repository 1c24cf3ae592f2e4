"""What boot tests share: a small Debian root that boots, published as a capsule; a key; ssh into a guest."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.support.capsules import configuration
from vnfsbuild.host import mount
from vnfsbuild.hybrid import initrd
from vnfsbuild.store.capsules import Store
from vnfsbuild.store.manifest import Capsule, Kernel
from vnfsbuild.store.toc import scan

PACKAGES = (
    "systemd-sysv,dbus,libpam-systemd,linux-image-amd64,openssh-server,ifupdown,isc-dhcp-client,"
    "iproute2,kmod,udev,rsync"
)
EPOCH = 1_700_000_000
CMDLINE = "console=tty0 console=ttyS0,115200"

_HOST_KEYS = """[Unit]
Description=Make SSH host keys for this node
Before=ssh.service
ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/ssh-keygen -A
[Install]
WantedBy=multi-user.target
"""


def make_root(root: Path) -> Path:
    """A Debian 12 root from the host's own package sources, in half a minute, prepared to boot statelessly."""
    sources = Path("/etc/apt/sources.list.d/debian.sources")
    text = sources.read_bytes() if sources.exists() else Path("/etc/apt/sources.list").read_bytes()
    no_initramfs = (
        'chroot "$1" dpkg-divert --quiet --local --add --rename /usr/sbin/update-initramfs; '
        'ln -s /bin/true "$1"/usr/sbin/update-initramfs'
    )
    run("mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}", f"--essential-hook={no_initramfs}",
        "bookworm", str(root), "-", stdin=text)  # fmt: skip
    prepare(root)
    return root


def prepare(root: Path) -> None:
    """What makes a plain root stateless: identities of its own, the network the initrd found."""
    for name in ("hostname", "resolv.conf"):
        (root / "etc" / name).unlink(missing_ok=True)
    for key in (root / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    (root / "etc/machine-id").write_bytes(b"")
    (root / "etc/fstab").write_bytes(b"")
    (root / "etc/network/interfaces.d/vnfs").write_text("source /run/vnfs/interfaces\n")
    unit = root / "etc/systemd/system/ssh-host-keys.service"
    unit.write_text(_HOST_KEYS)
    wants = root / "etc/systemd/system/multi-user.target.wants/ssh-host-keys.service"
    wants.parent.mkdir(exist_ok=True)
    if not wants.is_symlink():
        wants.symlink_to("../ssh-host-keys.service")


def busybox_package(directory: Path) -> Path:
    """The busybox-static package of the host's distribution."""
    run("apt-get", "download", "busybox-static", cwd=directory)
    return next(directory.glob("busybox-static_*.deb"))


def publish(store: Store, root: Path, *, tools: Path, scratch: Path, name: str = "trial") -> Capsule:
    """Pack `root` as it is and publish it."""
    release, kernel = initrd.kernel(root)
    composed = initrd.compose(root, scratch / "initrd", release=release, tools=tools, epoch=EPOCH)
    image = scratch / "layer.squashfs"
    run("mksquashfs", str(root), str(image), "-comp", "zstd", "-Xcompression-level", "3", "-noappend", "-no-progress",
        "-quiet")  # fmt: skip
    toc = scan(root)
    with open(image, "rb") as layer, open(kernel, "rb") as vmlinuz, open(composed.path, "rb") as init:
        blobs = [store.blobs.put(stream) for stream in (layer, vmlinuz, init)]
    config = configuration(name, toc, kernel=Kernel(release, CMDLINE))
    return store.publish(config, layers=[blobs[0]], kernel=blobs[1], initrd=blobs[2],
                         toc=store.blobs.put_bytes(toc.dump()), sbom=store.blobs.put_bytes(b"{}"))  # fmt: skip


def publish_delta(store: Store, base: Capsule, tree: Path, *, scratch: Path) -> Capsule:
    """Publish the next version: `tree` as one more layer over `base`, with the tree digest of what both show."""
    image = scratch / "delta.squashfs"
    run("mksquashfs", str(tree), str(image), "-comp", "zstd", "-noappend", "-no-progress", "-quiet")
    with open(image, "rb") as stream:
        layer = store.blobs.put(stream)
    layers = (*base.layers, layer)
    point = scratch / "mounted"
    point.mkdir()
    with mount.layers([store.blobs.path(blob) for blob in layers], point) as view:
        toc = scan(view)
    return store.publish(replace(base.config, tree=toc.digest, parent=base.digest), layers=layers, kernel=base.kernel,
                         initrd=base.initrd, toc=store.blobs.put_bytes(toc.dump()), sbom=base.sbom)  # fmt: skip


@dataclass(frozen=True)
class Key:
    """An SSH key pair; `public` is a line of authorized_keys."""

    private: Path
    public: str


def make_key(directory: Path) -> Key:
    private = directory / "id_ed25519"
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(private))
    return Key(private, private.with_suffix(".pub").read_text().strip())


def ssh(port: int, key: Key, command: str, *, check: bool = True, timeout: float = 90) -> str:
    """Run a command on the guest and return what it printed."""
    return run("ssh", "-p", str(port), "-i", str(key.private), "-o", "BatchMode=yes", "-o", "LogLevel=ERROR",
               "-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
               "-o", "ConnectTimeout=60", "root@127.0.0.1", command, check=check, timeout=timeout)  # fmt: skip


def provenance(port: int, key: Key) -> dict[str, Any]:
    """What the guest says it runs."""
    answer: dict[str, Any] = json.loads(ssh(port, key, "cat /run/vnfs/provenance.json"))
    return answer


def flip_byte(path: Path, offset: int) -> Callable[[], None]:
    """Change one bit of a file in place, whatever its permissions; returns what undoes it."""

    def flip() -> None:
        with open(path, "r+b") as stream:
            stream.seek(offset)
            byte = stream.read(1)[0]
            stream.seek(offset)
            stream.write(bytes([byte ^ 0x10]))

    flip()
    return flip


def run(*argv: str, stdin: bytes | None = None, cwd: Path | None = None, check: bool = True,
        timeout: float | None = 600) -> str:  # fmt: skip
    result = subprocess.run(argv, input=stdin, capture_output=True, cwd=cwd, timeout=timeout, check=False)
    if check and result.returncode != 0:
        said = (result.stdout + result.stderr).decode(errors="replace")
        raise AssertionError(f"{' '.join(argv)} failed with {result.returncode}:\n{said}")
    return result.stdout.decode(errors="replace")
