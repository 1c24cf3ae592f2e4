"""Small real trees, and capsules made of them, for the tests of editing."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from tests.support.capsules import configuration
from vnfsbuild.format.squashfs import pack_tree
from vnfsbuild.model import Package
from vnfsbuild.store import sbom
from vnfsbuild.store.capsules import Store
from vnfsbuild.store.manifest import Capsule
from vnfsbuild.store.toc import scan

EPOCH = 1_700_000_000
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")


def status(*packages: Package) -> bytes:
    """A dpkg status file that says these are installed."""
    block = "Package: {}\nStatus: install ok installed\nVersion: {}\nArchitecture: {}\nDescription: x\n .\n"
    return "\n".join(block.format(p.name, p.version, p.arch) for p in packages).encode()


def small_tree(root: Path) -> Path:
    """A root of some twenty paths with everything that is hard to carry: links, capabilities, odd names, devices."""
    for name in ("etc", "etc/conf.d", "etc/conf.d/deep", "usr/bin", "usr/sbin", "var/lib/dpkg/info", "root", "empty"):
        (root / name).mkdir(parents=True)
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    (root / "etc/hostname").write_text("node\n")
    (root / "etc/motd").write_text("hello\n")
    for number in range(3):
        (root / f"etc/conf.d/{number}").write_text(f"{number}\n")
    (root / "etc/conf.d/deep/file").write_text("deep\n")
    (root / "usr/bin/one").write_bytes(b"#!/bin/sh\necho one\n")
    (root / "usr/bin/one").chmod(0o755)
    os.link(root / "usr/bin/one", root / "usr/bin/two")
    os.link(root / "usr/bin/one", root / "usr/sbin/three")
    (root / "usr/bin/capable").write_bytes(b"capable")
    os.setxattr(root / "usr/bin/capable", "security.capability", CAPABILITY)
    (root / "usr/bin/link").symlink_to("one")
    Path(os.fsdecode(bytes(root / "etc") + b"/caf\xe9")).write_text("latin\n")
    (root / "etc/.wh.real").write_text("a real file with a name that other formats give a meaning\n")
    os.mkfifo(root / "root/fifo")
    os.mknod(root / "root/null", 0o20666, os.makedev(1, 3))
    (root / "root/sparse").write_bytes(b"")
    os.truncate(root / "root/sparse", 1 << 20)
    (root / "var/lib/dpkg/status").write_bytes(status(Package("base", "1.0", "all")))
    (root / "var/lib/dpkg/info/base.list").write_text("/.\n/usr\n/usr/bin\n/usr/bin/one\n")
    for path in sorted(root.rglob("*"), reverse=True):
        os.utime(path, (EPOCH, EPOCH), follow_symlinks=False)
    os.utime(root, (EPOCH, EPOCH))
    return root


def publish(store: Store, root: Path, name: str = "tiny", packages: tuple[Package, ...] = ()) -> Capsule:
    """Make the tree at `root` a base version of `name`."""
    toc = scan(root)
    with tempfile.TemporaryDirectory() as scratch:
        image = Path(scratch) / "layer"
        pack_tree(root, image, epoch=EPOCH)
        with open(image, "rb") as stream:
            layer = store.blobs.put(stream)
    config = configuration(name, toc)
    return store.publish(
        config,
        layers=[layer],
        kernel=store.blobs.put_bytes(b"kernel"),
        initrd=store.blobs.put_bytes(b"initrd"),
        toc=store.blobs.put_bytes(toc.dump()),
        sbom=store.blobs.put_bytes(sbom.to_bytes(packages or (Package("base", "1.0", "all"),))),
    )
