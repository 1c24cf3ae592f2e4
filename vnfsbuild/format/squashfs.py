"""Squashfs images: packing a tree or a list of entries, and reading single files without mounting.

Squashfs keeps modes, owners, devices, hard links and the xattrs of user, trusted and security; POSIX ACLs it cannot
hold, which the caller finds out by comparing tables of contents. mksquashfs and unsquashfs do the work.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from vnfsbuild.errors import CommandFailed, HostError, TrustError
from vnfsbuild.host.fs import resolve_in, space_errors, work_directory
from vnfsbuild.host.run import run
from vnfsbuild.host.user import require_root
from vnfsbuild.store.toc import Entry, FileType

# What mksquashfs takes a level for, and the word it takes it in.
_LEVELLED = frozenset({"zstd", "gzip"})
_COMPRESSORS = frozenset({"zstd", "gzip", "xz", "lz4", "lzo"})
_SIZE = re.compile(r"^file .*, uncompressed size (\d+) bytes")
_CHUNK = 1 << 20
# mksquashfs takes a quarter of the machine, which it touches anew: slower by a fifth, and no better packed.
_MEMORY = 512 << 20
# Documentation/filesystems/squashfs.rst, struct squashfs_super_block: magic, …, compression at 20, …, major version.
_SUPERBLOCK = struct.Struct("<4s16xH6xH")
_NUMBERED = {1: "gzip", 3: "lzo", 4: "xz", 5: "lz4", 6: "zstd"}
_NODES = {
    FileType.CHAR: stat.S_IFCHR,
    FileType.BLOCK: stat.S_IFBLK,
    FileType.FIFO: stat.S_IFIFO,
    FileType.SOCKET: stat.S_IFSOCK,
}


def pack_tree(
    root: Path,
    out: Path,
    *,
    compressor: str = "zstd",
    level: int = 3,
    epoch: int,
    threads: int | None = None,
    advance: Callable[[int], None] | None = None,
) -> None:
    """Write the tree at `root` as the image `out`, replacing it; equal trees give equal bytes.

    `epoch` (seconds since 1970) is the time the image says it was made; files keep their own times. `advance` hears
    the bytes of each file as it is packed. NFS export tables are kept: overlayfs needs file handles for index=on.
    Raises NoSpace, or CommandFailed when a file cannot be read; `out` is gone then.
    """
    if compressor not in _COMPRESSORS:
        raise HostError(f"squashfs has no compressor {compressor!r}", f"one of: {', '.join(sorted(_COMPRESSORS))}")
    argv: list[str | Path] = ["mksquashfs", root, out, "-noappend", "-no-progress", "-exit-on-error", "-xattrs"]
    argv += ["-exports", "-mkfs-time", str(epoch), "-comp", compressor, "-mem", f"{_memory() >> 20}M"]
    if compressor in _LEVELLED:
        argv += ["-Xcompression-level", str(level)]
    if threads:
        argv += ["-processors", str(threads)]

    def heard(line: str) -> None:
        found = _SIZE.match(line)
        if found and advance:
            advance(int(found[1]))

    try:
        if advance:
            run([*argv, "-info"], on_line=heard, what=f"packing {out.name}")
        else:
            run([*argv, "-quiet"], what=f"packing {out.name}")
    except BaseException as error:
        out.unlink(missing_ok=True)
        if isinstance(error, CommandFailed) and "No space left" in error.tail:
            with space_errors(out):
                raise OSError(28, "No space left on device") from error
        raise


def _memory() -> int:
    return min(_MEMORY, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4)


def pack_stream(
    entries: Iterable[Entry],
    open_content: Callable[[Entry], IO[bytes]],
    out: Path,
    *,
    compressor: str = "zstd",
    level: int = 3,
    epoch: int,
    threads: int | None = None,
    advance: Callable[[int], None] | None = None,
) -> None:
    """Write `entries` as the image `out`; a directory comes before what is in it, the root ("/") included.

    An entry whose `link` names another path that came before becomes a hard link to it. Whiteouts are character
    devices (0, 0), opaque directories carry trusted.overlay.opaque: both are written as they are. The files pass
    through a scratch directory beside `out`, because the tar reader of mksquashfs 4.5 cannot set the owner, time or
    xattrs of the root directory; memory stays small. Needs root.
    """
    require_root("packing a layer")
    with work_directory(out.parent, "pack") as scratch, space_errors(scratch):
        tree = scratch / "tree"
        _lay_out(tree, entries, open_content)
        pack_tree(tree, out, compressor=compressor, level=level, epoch=epoch, threads=threads, advance=advance)


def _lay_out(tree: Path, entries: Iterable[Entry], open_content: Callable[[Entry], IO[bytes]]) -> None:
    tree.mkdir(mode=0o700)
    directories: list[Entry] = []
    made: set[str] = set()
    for entry in entries:
        if ".." in PurePosixPath(entry.path).parts or not entry.path.startswith("/"):
            raise TrustError(f"{entry.path!r} is not a path within a root")
        full = f"{tree}{entry.path}" if entry.path != "/" else str(tree)
        if entry.type is FileType.DIRECTORY:
            if entry.path != "/":
                Path(full).mkdir(0o700)
            directories.append(entry)
            continue
        if entry.link in made:
            os.link(f"{tree}{entry.link}", full, follow_symlinks=False)
            continue
        _make(full, entry, open_content)
        _attributes(full, entry)
        made.add(entry.path)
    for entry in reversed(directories):
        _attributes(f"{tree}{entry.path}", entry)


def _make(full: str, entry: Entry, open_content: Callable[[Entry], IO[bytes]]) -> None:
    if entry.type is FileType.FILE:
        with open_content(entry) as source, open(full, "xb") as target:
            shutil.copyfileobj(source, target, _CHUNK)
    elif entry.type is FileType.SYMLINK:
        Path(full).symlink_to(entry.target)
    else:
        os.mknod(full, _NODES[entry.type] | 0o600, os.makedev(*(entry.device or (0, 0))))


def _attributes(full: str, entry: Entry) -> None:
    # In this order: chown clears set-id bits and capabilities, and every one of them touches a time.
    os.chown(full, entry.uid, entry.gid, follow_symlinks=False)
    if entry.type is not FileType.SYMLINK:
        Path(full).chmod(entry.mode)
    for name, value in entry.xattrs:
        os.setxattr(full, name, value, follow_symlinks=False)
    os.utime(full, (entry.mtime, entry.mtime), follow_symlinks=False)


def compressor_of(image: Path) -> str:
    """The compressor an image was made with, from its superblock. Raises TrustError when it is not squashfs 4."""
    with open(image, "rb") as stream:
        head = stream.read(_SUPERBLOCK.size)
    if len(head) == _SUPERBLOCK.size:
        magic, number, major = _SUPERBLOCK.unpack(head)
        if magic == b"hsqs" and major == 4 and number in _NUMBERED:
            return _NUMBERED[number]
    raise TrustError(f"{image} is not a squashfs image that vnfs can read")


def read_files(image: Path, paths: Sequence[str], *, scratch: Path, limit: int = 64 << 20) -> dict[str, bytes]:
    """The contents of those of `paths` that are regular files of the image. Needs no root.

    `scratch` is a directory for the extracted files, which are removed again. Raises TrustError when one of them is
    larger than `limit` bytes, CommandFailed when the image cannot be read.
    """
    found: dict[str, bytes] = {}
    with work_directory(scratch, "read") as place:
        wanted = place / "paths"
        wanted.write_bytes(b"".join(os.fsencode(path.lstrip("/")) + b"\n" for path in paths if "\n" not in path))
        argv: list[str | Path] = [
            "unsquashfs",
            "-no-progress",
            "-quiet",
            "-no-xattrs",
            "-no-wildcards",
            "-processors",
            "1",
        ]
        run([*argv, "-dest", place / "root", "-extract-file", wanted, image], what=f"reading {image.name}")
        for path in paths:
            # The image may be a stranger's, with a link where the path has a directory: one that leads into our own /.
            above, _, name = path.rpartition("/")
            try:
                full = resolve_in(place / "root", above) / name
                descriptor = os.open(full, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            except (OSError, HostError):
                continue
            info = os.fstat(descriptor)
            if not stat.S_ISREG(info.st_mode):
                os.close(descriptor)
                continue
            with open(descriptor, "rb") as stream:
                if info.st_size > limit:
                    raise TrustError(f"{path} in {image.name} is larger than {limit} bytes")
                found[path] = stream.read()
    return found
