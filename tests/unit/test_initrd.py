"""What goes into an initrd: chosen from depmod's tables, read inside the root only, in equal bytes every time."""

from __future__ import annotations

import gzip
import lzma
import os
import subprocess
from pathlib import Path

import pytest
import zstandard

from vnfsbuild.errors import NotFound, TrustError, VnfsError
from vnfsbuild.hybrid import initrd
from vnfsbuild.hybrid.modules import ModuleTree, inside

RELEASE = "6.1.0-9-amd64"
EPOCH = 1_700_000_000

DEP = """\
kernel/fs/squashfs/squashfs.ko:
kernel/fs/overlayfs/overlay.ko.zst:
kernel/drivers/block/loop.ko.xz:
kernel/drivers/virtio/virtio.ko:
kernel/drivers/virtio/virtio_ring.ko: kernel/drivers/virtio/virtio.ko
kernel/drivers/net/virtio_net.ko: kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio.ko
kernel/drivers/net/phy/realtek.ko:
kernel/drivers/net/ethernet/realtek/r8169.ko:
kernel/drivers/net/ethernet/mellanox/mlxsw/mlxsw_core.ko:
kernel/lib/libcrc32c.ko:
kernel/crypto/crc32c_generic.ko:
kernel/fs/xfs/xfs.ko: kernel/lib/libcrc32c.ko
kernel/drivers/net/wireless/ath.ko:
"""
SOFT = "softdep r8169 pre: realtek\nsoftdep libcrc32c pre: crc32c\nsoftdep realtek post: ath pre: r8169\n"
ALIAS = """\
alias pci:v000010ECd00008168sv*sd*bc*sc*i* r8169
alias virtio:d00000001v* virtio_net
alias crc32c crc32c_generic
alias fs-xfs xfs
alias pci:v0000168Cd* ath
"""


def module(*facts: str) -> bytes:
    return b"\x7fELF code \0" + b"\0".join(fact.encode() for fact in facts) + b"\0 more code"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with a merged /usr, a handful of modules and two kernels."""
    top = tmp_path / "root"
    modules = top / "usr/lib/modules" / RELEASE
    for line in DEP.splitlines():
        path = modules / line.partition(":")[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        name = path.name.split(".")[0]
        plain = module(f"description={name}", "firmware=rtl_nic/rtl8168g-2.fw" if name == "r8169" else "license=GPL")
        if path.suffix == ".xz":
            path.write_bytes(lzma.compress(plain))
        elif path.suffix == ".zst":
            path.write_bytes(zstandard.compress(plain))
        else:
            path.write_bytes(plain)
    for name, text in (
        ("dep", DEP),
        ("softdep", SOFT),
        ("alias", ALIAS),
        ("builtin", "kernel/net/packet/af_packet.ko\n"),
    ):
        (modules / f"modules.{name}").write_text(text)
    (top / "usr/lib/modules/6.1.0-8-amd64").mkdir()
    (top / "lib").symlink_to("usr/lib")
    (top / "boot").mkdir()
    for release in (RELEASE, "6.1.0-8-amd64", "6.9.0-1-amd64"):
        (top / f"boot/vmlinuz-{release}").write_bytes(b"MZ")
    (top / f"boot/config-{RELEASE}").write_text("CONFIG_RD_GZIP=y\nCONFIG_RD_XZ=y\nCONFIG_RD_ZSTD=y\n")
    firmware = top / "usr/lib/firmware/rtl_nic"
    firmware.mkdir(parents=True)
    (firmware / "rtl8168g-2.fw.xz").write_bytes(lzma.compress(b"FIRMWARE"))
    return top


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    return package(tmp_path, "bin/busybox", b"\x7fELF busybox")


def package(directory: Path, path: str, data: bytes) -> Path:
    """A real .deb with one file."""
    tree = directory / "package"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        "Package: busybox-static\nVersion: 1\nArchitecture: amd64\nMaintainer: a <a@b>\nDescription: x\n"
    )
    (tree / path).parent.mkdir(parents=True, exist_ok=True)
    (tree / path).write_bytes(data)
    (tree / path).chmod(0o755)
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", tree, directory / "busybox.deb"], check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    return directory / "busybox.deb"


def composed(root: Path, tools: Path, out: Path, *extra: str) -> tuple[initrd.Initrd, dict[str, bytes]]:
    """Compose, and read the result with GNU cpio."""
    made = initrd.compose(root, out, release=RELEASE, tools=tools, extra_modules=extra, epoch=EPOCH)
    plain = {"zstd": lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data),
             "xz": lzma.decompress, "gzip": gzip.decompress}[made.compression](out.read_bytes())  # fmt: skip
    into = out.with_suffix(".tree")
    into.mkdir()
    subprocess.run(
        ["cpio", "-i", "-d", "--quiet", "--no-preserve-owner", "-f", "dev/*"], input=plain, cwd=into, check=True
    )
    return made, {
        str(p.relative_to(into)): p.read_bytes() for p in into.rglob("*") if p.is_file() and not p.is_symlink()
    }


def test_modules_come_with_dependencies_firmware_and_tables_that_busybox_reads(
    root: Path, tools: Path, tmp_path: Path
) -> None:
    made, files = composed(root, tools, tmp_path / "initrd")
    base = f"lib/modules/{RELEASE}"
    assert made.modules == ("loop", "overlay", "r8169", "realtek", "squashfs", "virtio", "virtio_net", "virtio_ring")
    assert made.firmware == ("rtl_nic/rtl8168g-2.fw",)
    assert files["lib/firmware/rtl_nic/rtl8168g-2.fw"] == b"FIRMWARE"
    assert files[f"{base}/kernel/drivers/block/loop.ko"].startswith(b"\x7fELF"), "modules lie there uncompressed"
    table = dict(line.split(":", 1) for line in files[f"{base}/modules.dep"].decode().splitlines())
    # busybox loads the last word first.
    assert table["kernel/drivers/net/virtio_net.ko"].split() == [
        "kernel/drivers/virtio/virtio_ring.ko",
        "kernel/drivers/virtio/virtio.ko",
    ]
    assert table["kernel/drivers/net/ethernet/realtek/r8169.ko"].split() == ["kernel/drivers/net/phy/realtek.ko"]
    aliases = files[f"{base}/modules.alias"].decode()
    assert "virtio_net" in aliases
    assert " ath" not in aliases, "aliases of modules that are not here would send modprobe after nothing"
    assert files["init"].startswith(b"#!/bin/busybox sh")
    assert files["bin/busybox"] == b"\x7fELF busybox"


def test_extra_modules_bring_soft_dependencies_by_alias(root: Path, tools: Path, tmp_path: Path) -> None:
    made, _ = composed(root, tools, tmp_path / "initrd", "xfs")
    assert {"xfs", "libcrc32c", "crc32c_generic"} <= set(made.modules)


def test_soft_dependencies_that_point_at_each_other_end(root: Path) -> None:
    needs = ModuleTree.load(root, RELEASE).closure(["r8169"])
    assert {path.rsplit("/", 1)[1] for path in needs} == {"r8169.ko", "realtek.ko"}


def test_the_same_root_gives_the_same_bytes_whatever_umask_and_place(root: Path, tools: Path, tmp_path: Path) -> None:
    first, _ = composed(root, tools, tmp_path / "one")
    moved = root.rename(tmp_path / "elsewhere")
    mask = os.umask(0o077)
    try:
        second, _ = composed(moved, tools, tmp_path / "two")
    finally:
        os.umask(mask)
    assert first.path.read_bytes() == second.path.read_bytes()


@pytest.mark.parametrize(
    ("summary", "options", "expected"),
    [
        ("zstd first", "CONFIG_RD_ZSTD=y\nCONFIG_RD_XZ=y\n", "zstd"),
        ("EL8 has no zstd", "# CONFIG_RD_ZSTD is not set\nCONFIG_RD_XZ=y\n", "xz"),
        ("neither", "CONFIG_RD_GZIP=y\n", "gzip"),
        ("no configuration at all", None, "gzip"),
    ],
)
def test_compression_is_one_that_the_kernel_unpacks(
    root: Path, tools: Path, tmp_path: Path, summary: str, options: str | None, expected: str
) -> None:
    config = root / f"boot/config-{RELEASE}"
    config.unlink() if options is None else config.write_text(options)
    made, _ = composed(root, tools, tmp_path / "initrd")
    assert made.compression == expected


def test_the_newest_kernel_that_has_modules_is_taken(root: Path) -> None:
    assert initrd.kernel(root) == (RELEASE, root / f"boot/vmlinuz-{RELEASE}")


def test_links_never_lead_out_of_the_root(root: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("host")
    (root / "absolute").symlink_to(secret)
    (root / "climbing").symlink_to("../../secret")
    (root / "round").symlink_to("round")
    (root / "etc").mkdir()
    (root / "etc/release").write_text("root")
    (root / "good").symlink_to("/etc/release")
    assert inside(root, "absolute") is None
    assert inside(root, "climbing") is None
    assert inside(root, "round") is None
    assert inside(root, "good") == root / "etc/release"


@pytest.mark.parametrize(
    ("summary", "extra", "hint"),
    [("a misspelt module", "squashf", "squashfs"), ("nothing like it", "zzz", "lib/modules")],
)
def test_a_module_that_does_not_exist_is_an_error_with_the_nearest_name(
    root: Path, tools: Path, tmp_path: Path, summary: str, extra: str, hint: str
) -> None:
    with pytest.raises(NotFound) as caught:
        composed(root, tools, tmp_path / "initrd", extra)
    assert extra in caught.value.message
    assert hint in caught.value.hint
    assert not (tmp_path / "initrd").exists()


def test_a_damaged_module_is_named(root: Path, tools: Path, tmp_path: Path) -> None:
    (root / f"usr/lib/modules/{RELEASE}/kernel/drivers/block/loop.ko.xz").write_bytes(b"not xz")
    with pytest.raises(VnfsError, match=r"loop\.ko\.xz"):
        composed(root, tools, tmp_path / "initrd")


def test_a_root_without_kernel_or_tables_says_what_to_do(tmp_path: Path, root: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFound) as caught:
        initrd.kernel(tmp_path / "empty")
    assert "linux-image" in caught.value.hint
    (root / f"usr/lib/modules/{RELEASE}/modules.dep").unlink()
    with pytest.raises(NotFound, match=r"modules\.dep"):
        ModuleTree.load(root, RELEASE)


def test_a_package_without_busybox_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(TrustError, match="no busybox"):
        composed(root, package(tmp_path, "bin/else", b"\x7fELF"), tmp_path / "initrd")
