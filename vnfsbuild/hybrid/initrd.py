"""Compose a capsule's initrd: modules of its own kernel, busybox of its own distribution, and the scripts in boot/.

Nothing of the root is run. The same root, tools and epoch give the same bytes.
"""

from __future__ import annotations

import gzip
import io
import lzma
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import zstandard

from vnfsbuild.errors import NotFound, TrustError, VnfsError
from vnfsbuild.format import cpio
from vnfsbuild.host.fs import atomic_write
from vnfsbuild.host.run import run
from vnfsbuild.hybrid.modules import ModuleTree, expanded, firmware_of, inside, module_name, read_inside

# Directories of drivers that come whole: what firmware can boot from, the kernel must be able to drive.
_DRIVERS = ("kernel/drivers/net/ethernet/", "kernel/drivers/net/phy/", "kernel/drivers/net/mdio/")
# Drivers of switch chips: megabytes, and no node boots through one.
_SWITCHES = ("kernel/drivers/net/ethernet/mellanox/mlxsw/", "kernel/drivers/net/ethernet/marvell/prestera/")
_REQUIRED = ("squashfs", "overlay", "loop")
_WANTED = (
    *("af_packet", "virtio_pci", "virtio_net", "virtio_mmio", "vmxnet3", "hv_netvsc", "8021q"),
    *("nfs", "nfsv3", "nfsv4"),
    *("nvme", "ahci", "ata_piix", "virtio_blk", "virtio_scsi", "sd_mod", "megaraid_sas", "mpt3sas", "smartpqi"),
    "crc32c_intel",
)
_MAX_TOOL = 16 << 20
_ZSTD_LEVEL = 6


@dataclass(frozen=True, slots=True)
class Initrd:
    """What was composed: `size` in bytes as compressed, `modules` and `firmware` by name, sorted."""

    path: Path
    release: str
    size: int
    compression: str
    modules: tuple[str, ...]
    firmware: tuple[str, ...]


def kernel(root: Path) -> tuple[str, Path]:
    """Release and file of the newest kernel in the root. Raises NotFound when it has none that has modules."""
    place = inside(root, "boot")
    found = sorted(place.glob("vmlinuz-*") if place else (), key=lambda path: _natural(path.name), reverse=True)
    for path in found:
        release = path.name.removeprefix("vmlinuz-")
        if path.is_file() and not path.is_symlink() and inside(root, f"lib/modules/{release}"):
            return release, path
    raise NotFound(
        f"there is no kernel with modules in {root}", "add a kernel to the recipe's packages, such as linux-image-amd64"
    )


def _natural(text: str) -> list[tuple[int, int, str]]:
    """Numbers compare as numbers: 6.1.0-9 is older than 6.1.0-37. What is a name suffix (-cloud) sorts by itself."""
    return [(1, int(word), "") if word.isdigit() else (0, 0, word) for word in re.findall(r"\d+|\D+", text)]


def compose(
    root: Path, out: Path, *, release: str, tools: Path, extra_modules: tuple[str, ...] = (), epoch: int
) -> Initrd:
    """Write the initrd for the kernel `release` of `root` to `out`, atomically.

    `tools` is the busybox-static package of the same distribution; its bytes must have been verified. `extra_modules`
    are names beyond network, storage, squashfs, overlay and NFS. Raises NotFound for a module that the kernel does not
    have, TrustError when `tools` holds no busybox.
    """
    tree = ModuleTree.load(root, release)
    chosen = tree.closure(_selection(tree, release, extra_modules))
    members = [*_skeleton(), *_scripts(), cpio.file("bin/busybox", _busybox(tools), 0o755)]
    names: list[str] = []
    firmware: dict[str, bytes] = {}
    for path in sorted(chosen):
        data = read_inside(root, f"lib/modules/{release}/{path}")
        if data is None:
            raise NotFound(
                f"{root} lacks the module {path}, which its modules.dep lists", f"run depmod {release} in it"
            )
        plain = expanded(path, data)
        names.append(module_name(path))
        firmware |= dict(firmware_of(root, plain))
        members.append(cpio.file(f"lib/modules/{release}/{_stored(path)}", plain))
    members += [cpio.file(f"lib/firmware/{name}", data) for name, data in firmware.items()]
    members += _tables(tree, release, chosen)
    archive = io.BytesIO()
    cpio.pack(members, archive, epoch=epoch)
    compression = _compression(root, release)
    data = _compress(archive.getbuffer(), compression)
    atomic_write(out, data)
    return Initrd(out, release, len(data), compression, tuple(sorted(names)), tuple(sorted(firmware)))


def _selection(tree: ModuleTree, release: str, extra: tuple[str, ...]) -> list[str]:
    for name in (*_REQUIRED, *extra):
        if not tree.has(name):
            raise NotFound(f"the kernel {release} has no module {name}", tree.nearest(name))
    drivers = [module_name(path) for path in tree.needs if path.startswith(_DRIVERS) and not path.startswith(_SWITCHES)]
    return [*_REQUIRED, *_WANTED, *extra, *drivers]


def _skeleton() -> Iterator[cpio.Member]:
    for path in ("dev", "etc", "newroot", "proc", "run", "sbin", "sys", "tmp", "usr/bin", "usr/sbin"):
        yield cpio.directory(path)
    yield cpio.character_device("dev/console", 5, 1)
    yield cpio.character_device("dev/null", 1, 3, 0o666)
    # The kernel itself calls /sbin/modprobe when a file system or a PHY asks for its module.
    yield cpio.symlink("sbin/modprobe", "../bin/busybox")


def _scripts() -> Iterator[cpio.Member]:
    """The programs of boot/: `init` at the root, what it reads under lib/vnfs."""
    for item in sorted(resources.files("vnfsbuild.hybrid").joinpath("boot").iterdir(), key=lambda each: each.name):
        if item.name == "init":
            yield cpio.file("init", item.read_bytes(), 0o755)
        elif item.name.endswith(".sh"):
            yield cpio.file(f"lib/vnfs/{item.name}", item.read_bytes(), 0o755)


def _busybox(package: Path) -> bytes:
    archive = run(["dpkg-deb", "--fsys-tarfile", package], what=f"unpacking {package.name}").output
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        for member in members:
            if member.isfile() and member.name in {"./bin/busybox", "./usr/bin/busybox"} and member.size <= _MAX_TOOL:
                stream = members.extractfile(member)
                data = stream.read() if stream else b""
                if data.startswith(b"\x7fELF"):
                    return data
    raise TrustError(f"{package} holds no busybox", "the boot tools come from the package busybox-static")


def _stored(path: str) -> str:
    """Modules lie in the initrd as plain .ko: the archive is compressed as a whole."""
    return path.split(".ko", 1)[0] + ".ko"


def _tables(tree: ModuleTree, release: str, chosen: dict[str, tuple[str, ...]]) -> Iterator[cpio.Member]:
    """modules.dep, modules.alias and modules.builtin for what was chosen. busybox knows no soft dependencies, so they
    are written as plain ones; it loads the last of a line first."""
    lines = [
        f"{_stored(path)}: {' '.join(_stored(need) for need in reversed(needs))}".rstrip()
        for path, needs in sorted(chosen.items())
    ]
    names = {module_name(path) for path in chosen}
    aliases = [f"alias {pattern} {name}" for pattern, name in tree.aliases if name.replace("-", "_") in names]
    builtin = [f"kernel/{name}.ko" for name in sorted(tree.builtin)]
    for name, text in (("dep", lines), ("alias", aliases), ("builtin", builtin)):
        yield cpio.file(f"lib/modules/{release}/modules.{name}", ("\n".join(text) + "\n").encode())


def _compression(root: Path, release: str) -> str:
    """What that kernel unpacks, best first. Without its configuration: gzip, which all do."""
    for path in (f"boot/config-{release}", f"lib/modules/{release}/config"):
        options = read_inside(root, path)
        if options is not None:
            lines = set(options.splitlines())
            return next((kind for kind in ("zstd", "xz") if f"CONFIG_RD_{kind.upper()}=y".encode() in lines), "gzip")
    return "gzip"


def _compress(data: memoryview, kind: str) -> bytes:
    if kind == "zstd":
        return zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True).compress(data)
    if kind == "xz":
        # The kernel's decoder knows CRC32 only.
        return lzma.compress(data, check=lzma.CHECK_CRC32, preset=1)
    if kind == "gzip":
        return gzip.compress(data, 6, mtime=0)
    raise VnfsError(f"{kind} is no compression of initrds")
