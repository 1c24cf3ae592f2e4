"""Small capsules made of real parts: squashfs layers from mksquashfs, a table of contents scanned from the tree.

Needs no root: a deletion becomes a whiteout by mksquashfs' pseudo files.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vnfsbuild.host.run import run
from vnfsbuild.store import sbom
from vnfsbuild.store.capsules import Store
from vnfsbuild.store.manifest import Capsule, Config, Kernel
from vnfsbuild.store.toc import Entry, Toc, scan

EPOCH = 1_700_000_000
KERNEL = Kernel("6.1.0-1-amd64")
FILES: Mapping[str, bytes | None] = {
    "etc/hostname": b"demo\n",
    "etc/motd": b"welcome\n",
    "usr/bin/hello": b"#!/bin/sh\necho hello\n",
}


def random_bytes(size: int, seed: int = 1) -> bytes:
    """The same incompressible bytes for the same seed."""
    source, piece = random.Random(seed), 64 << 20
    return b"".join(source.randbytes(min(piece, size - start)) for start in range(0, size, piece))


def configuration(name: str, toc: Toc, *, kernel: Kernel = KERNEL, **more: Any) -> Config:
    """What a version of `name` with this tree says of itself: a Debian 12; the store sets its number."""
    place = {"family": "deb", "distro": "debian", "suite": "bookworm", "architecture": "amd64"}
    return Config(
        name=name, version=1, created="2023-11-14T22:13:20Z", tree=toc.digest, kernel=kernel, **(place | more)
    )


def make_capsule(
    store: Store,
    name: str = "demo",
    files: Mapping[str, bytes | None] = FILES,
    parent: Capsule | None = None,
    *,
    kernel: bytes = b"kernel" * 1000,
    initrd: bytes = b"initrd" * 2000,
    message: str = "",
) -> Capsule:
    """Publish a version of `name` whose tree has `files` (path to content; None takes a path of the parent away).

    With `parent` the version has the parent's layers below one that holds only `files`. Paths below bin/ and sbin/
    are executable; every mtime is the same.
    """
    with tempfile.TemporaryDirectory(prefix="vnfs-test-") as scratch:
        tree = Path(scratch) / "tree"
        tree.mkdir(mode=0o755)
        gone = [path for path, content in files.items() if content is None]
        _fill(tree, files)
        changed = scan(tree, threads=1)
        image = Path(scratch) / "layer.squashfs"
        _pack(tree, image, gone)
        with open(image, "rb") as source:
            layer = store.blobs.put(source)
    base = store.toc(parent) if parent else Toc(())
    toc = _merge(base, changed, gone)
    config = configuration(
        name,
        toc,
        kernel=Kernel("6.1.0-test-amd64", "console=ttyS0"),
        message=message,
        parent=parent.digest if parent else "",
    )
    return store.publish(
        config,
        layers=(*(parent.layers if parent else ()), layer),
        kernel=parent.kernel if parent else store.blobs.put_bytes(kernel),
        initrd=parent.initrd if parent else store.blobs.put_bytes(initrd),
        toc=store.blobs.put_bytes(toc.dump()),
        sbom=store.blobs.put_bytes(sbom.to_bytes(())),
    )


def _fill(tree: Path, files: Mapping[str, bytes | None]) -> None:
    for path, content in files.items():
        target = tree / path
        directory = target.parent
        directory.mkdir(parents=True, exist_ok=True)
        if content is not None:
            target.write_bytes(content)
            target.chmod(0o755 if directory.name in {"bin", "sbin"} else 0o644)
    for directory_name, _, names in os.walk(tree, topdown=False):
        for entry in (*(f"{directory_name}/{name}" for name in names), directory_name):
            os.utime(entry, (EPOCH, EPOCH))
        Path(directory_name).chmod(0o755)


def _pack(tree: Path, image: Path, gone: list[str]) -> None:
    assert shutil.which("mksquashfs"), "mksquashfs is needed: apt-get install squashfs-tools"
    whiteouts = [word for path in gone for word in ("-p", f"{path} c 000 0 0 0 0")]
    fixed = ["-noappend", "-no-progress", "-quiet", "-comp", "zstd", "-Xcompression-level", "1", "-processors", "1"]
    run(["mksquashfs", tree, image, *fixed, "-mkfs-time", str(EPOCH), *whiteouts])
    image.chmod(0o644)


def _merge(base: Toc, changed: Toc, gone: list[str]) -> Toc:
    removed = tuple(f"/{path}" for path in gone)
    kept: dict[str, Entry] = {
        path: entry
        for path, entry in base.by_path().items()
        if not any(path == dead or path.startswith(f"{dead}/") for dead in removed)
    }
    return Toc.of([replace(entry) for entry in (kept | changed.by_path()).values()])
