"""Files on this host: atomic writes, locks that die with their process, directories that vanish with their context."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from vnfsbuild.errors import Busy, HostError, NoSpace
from vnfsbuild.host.interrupt import resource

_MAX_LINKS = 40  # as the kernel


_LOCK_TRIES = 10
_LOCK_PAUSE = 0.05


def make_directory(path: Path, mode: int = 0o755) -> Path:
    """Make `path` and its parents. Raises HostError with a hint when that is not allowed."""
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
    except PermissionError as error:
        raise HostError(
            f"may not create {path}", "run as root, or set VNFS_STORE, VNFS_CACHE and VNFS_WORK elsewhere"
        ) from error
    except (NotADirectoryError, FileExistsError) as error:
        raise HostError(f"{path} cannot be a directory: a file is in the way") from error
    return path


def sync_directory(path: Path) -> None:
    """Make renames within `path` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(path: Path, *, mode: int = 0o644) -> Iterator[IO[bytes]]:
    """Write a file that appears complete, durable and under its name, or not at all. Raises NoSpace."""
    with space_errors(path), work_file(path.parent, f".{path.name}") as (temporary, out):
        yield out
        out.flush()
        os.fchmod(out.fileno(), mode)
        os.fsync(out.fileno())
        temporary.rename(path)
        sync_directory(path.parent)


def atomic_write(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace the content of `path` at once: readers see the old bytes or the new ones."""
    with atomic_file(path, mode=mode) as out:
        out.write(data)


@contextmanager
def lock(path: Path, *, wait: bool = True, what: str = "") -> Iterator[None]:
    """Hold an exclusive lock on `path`. The kernel releases it when the process ends, however it ends.

    Without `wait`, raises Busy naming `what` when somebody else holds it.
    """
    make_directory(path.parent)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if wait:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        elif not _seized(descriptor):
            raise Busy(f"{what or path} is in use by another vnfs", "wait for it to finish")
        yield
    finally:
        os.close(descriptor)


def _seized(descriptor: int) -> bool:
    """Try for a moment: between its fork and its exec, a child of a process that was just killed still holds what that
    one held."""
    for _ in range(_LOCK_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOCK_PAUSE)
        else:
            return True
    return False


@contextmanager
def work_directory(parent: Path, prefix: str) -> Iterator[Path]:
    """A scratch directory, removed when the context ends. One that a killed process left is removed by the next call.

    Liveness is a lock on the directory itself, so that no process id is ever guessed at.
    """
    make_directory(parent)
    sweep(parent, prefix)  # may take long, and does no harm when a signal ends it
    with _claimed_directory(parent, prefix) as path:
        yield path


@resource
def _claimed_directory(parent: Path, prefix: str) -> Iterator[Path]:
    path, descriptor = _claim(parent, prefix, directory=True)
    try:
        yield path
    finally:
        remove_tree(path)
        os.close(descriptor)


@contextmanager
def work_file(parent: Path, prefix: str) -> Iterator[tuple[Path, IO[bytes]]]:
    """A scratch file, open for writing, removed when the context ends unless it was renamed. One that a killed process
    left is removed by the next call."""
    sweep(parent, prefix)
    with _claimed_file(parent, prefix) as claimed:
        yield claimed


@resource
def _claimed_file(parent: Path, prefix: str) -> Iterator[tuple[Path, IO[bytes]]]:
    path, descriptor = _claim(parent, prefix, directory=False)
    with open(descriptor, "wb") as out:
        try:
            yield path, out
        finally:
            with suppress(FileNotFoundError):
                path.unlink()


def _claim(parent: Path, prefix: str, *, directory: bool) -> tuple[Path, int]:
    """Make a scratch file or directory and lock it. Until it is locked a sweep may take it for abandoned and remove
    it: then there is nothing in it yet, and another is made."""
    while True:
        path = parent / f"{prefix}-{os.urandom(6).hex()}"
        try:
            if directory:
                path.mkdir(mode=0o700)
            flags = os.O_RDONLY | os.O_DIRECTORY if directory else os.O_WRONLY | os.O_CREAT | os.O_EXCL
            descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:
            if not parent.is_dir():
                raise
            continue
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.lstat(path)):
                return path, descriptor
        os.close(descriptor)


def sweep(parent: Path, prefix: str) -> None:
    """Remove the scratch files and directories in `parent` that no living process holds, as far as that can be done
    now: what is still mounted in one stays, with it, until it is unmounted."""
    ours = re.compile(re.escape(prefix) + "-[0-9a-f]{12}")
    with os.scandir(parent) as found:
        paths = [Path(item.path) for item in found if ours.fullmatch(item.name)]
    for path in paths:
        with suppress(OSError, HostError):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.is_dir():
                    remove_tree(path)
                else:
                    path.unlink()
            finally:
                os.close(descriptor)


def remove_tree(path: Path) -> None:
    """Remove `path` and what is below it, never following a link or crossing into another file system."""
    if path.is_symlink() or not path.exists():
        return
    device = path.stat().st_dev
    for entry in os.walk(path):
        if os.lstat(entry[0]).st_dev != device:
            raise HostError(f"{path} still has a file system mounted at {entry[0]}", f"umount {entry[0]}")
    # Imported here because it brings three compressors with it, and vnfs mount must be instant.
    import shutil  # noqa: PLC0415

    shutil.rmtree(path)


def resolve_in(root: Path, path: str, *, covered: Collection[str] = ()) -> Path:
    """Where `path` leads for a program whose root directory is `root`: links are followed as they mean it there, so
    that none leads outside. The result has no link in it; what is not there is taken as it is written.

    `covered` names top directories over which something else will be mounted: what they hold now does not count.
    """
    pending, place, links = path.split("/")[::-1], list[str](), 0
    while pending:
        part = pending.pop()
        if part in {"", "."}:
            continue
        if part == "..":
            del place[-1:]
            continue
        place.append(part)
        if place[0] in covered:
            continue
        try:
            target = os.readlink(root.joinpath(*place))
        except OSError:  # no link, or nothing there
            continue
        links += 1
        if links > _MAX_LINKS:
            raise HostError(f"{path} in {root} leads through too many symbolic links")
        place = [] if target.startswith("/") else place[:-1]
        pending += target.split("/")[::-1]
    return root.joinpath(*place)


def free_bytes(path: Path) -> int:
    """Bytes that we may still write to the file system of `path`."""
    info = os.statvfs(path)
    return info.f_bavail * info.f_frsize


def available_memory() -> int:
    """Bytes of memory the kernel thinks it can hand out without swapping (MemAvailable)."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


@contextmanager
def space_errors(path: Path) -> Iterator[None]:
    """Turn the kernel's "no space" into an error that names the file system and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise NoSpace(
            f"no space left where {path} lies",
            NoSpace.FREE_SOME,
        ) from error


def walk(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Every path below `root` with its lstat, the root first as "/". Does not cross into other file systems."""
    top = os.lstat(root)
    yield "/", top
    pending = [""]
    while pending:
        directory = pending.pop()
        with os.scandir(f"{root}{directory}") as found:
            for item in sorted(found, key=lambda entry: os.fsencode(entry.name)):
                info = item.stat(follow_symlinks=False)
                path = f"{directory}/{item.name}"
                yield path, info
                if stat.S_ISDIR(info.st_mode) and info.st_dev == top.st_dev:
                    pending.append(path)


def xattr_names(full: str) -> list[str]:
    """The names of a path's xattrs, sorted; none where the file system has none (a squashfs image without a table)."""
    try:
        return sorted(os.listxattr(full, follow_symlinks=False))
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        return []
