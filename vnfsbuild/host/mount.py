"""Mounts, as context managers and as pairs of calls; each is ended by whoever made it, by its own path.

The mount(2) system call is used directly (through libc), so that a mount takes microseconds and an error is an errno.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from vnfsbuild.errors import Busy, HostError
from vnfsbuild.host.interrupt import resource

_libc = ctypes.CDLL(None, use_errno=True)

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
# From linux/loop.h.
_LOOP_CTL_GET_FREE, _LOOP_CONFIGURE = 0x4C82, 0x4C0A
_LO_FLAGS_READ_ONLY, _LO_FLAGS_AUTOCLEAR = 1, 4
_LOOP_TRIES = 64
# mount(2): the kernel reads one page of options, and drops the rest without a word.
_MAX_OPTIONS = os.sysconf("SC_PAGE_SIZE") - 1
_CLONE_NEWNS = 0x00020000


def _mount(source: str, target: Path, fstype: str, flags: int = 0, data: str = "") -> None:
    result = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        fstype.encode() or None,
        ctypes.c_ulong(flags),
        data.encode() or None,
    )
    if result != 0:
        number = ctypes.get_errno()
        hint = "are you root, outside a container?" if number == errno.EPERM else ""
        raise HostError(f"cannot mount {fstype or source} at {target}: {os.strerror(number)}", hint)


def isolate() -> None:
    """Give this process a mount namespace of its own: what it mounts from now on nobody else sees, and the kernel
    takes it away when the process ends, even by kill -9."""
    if _libc.unshare(_CLONE_NEWNS) != 0:
        raise HostError(f"cannot make a mount namespace: {os.strerror(ctypes.get_errno())}")
    _mount("none", Path("/"), "", MS_REC | MS_PRIVATE)


def unmount(target: Path) -> None:
    """Unmount `target`. Raises Busy when something still uses it."""
    if _libc.umount2(os.fsencode(target), 0) != 0:
        number = ctypes.get_errno()
        if number == errno.EBUSY:
            raise Busy(f"{target} is in use", "close the programs and shells inside it")
        raise HostError(f"cannot unmount {target}: {os.strerror(number)}")


@resource
def tmpfs(target: Path, *, size: int) -> Iterator[Path]:
    """A memory file system of at most `size` bytes at `target`, gone with everything in it when the context ends."""
    _mount("vnfs", target, "tmpfs", MS_NODEV, f"size={size},mode=755,nr_inodes=0")
    try:
        yield target
    finally:
        unmount(target)


def squashfs(image: Path, target: Path) -> None:
    """Mount a squashfs image read-only at `target`, through a loop device that detaches itself on unmount."""
    with _loop(image) as device:
        _mount(device, target, "squashfs", MS_RDONLY | MS_NODEV | MS_NOSUID)


@resource
def _loop(image: Path) -> Iterator[str]:
    """A read-only loop device on `image`. It goes with its last user: with us, or with what mounted it meanwhile.

    LOOP_CONFIGURE of loop(4) sets it up in one step, so that there is no moment at which a kill would leave it behind.
    """
    try:
        backing = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"cannot mount {image}: {error.strerror}", "vnfs verify") from error
    try:
        device, path = _configured(backing, image)
    finally:
        os.close(backing)
    try:
        yield path
    finally:
        os.close(device)


def _configured(backing: int, image: Path) -> tuple[int, str]:
    # struct loop_config: fd, block size, struct loop_info64 (flags at byte 52 of it), reserved.
    config = bytearray(4 + 4 + 232 + 64)
    struct.pack_into("=I", config, 0, backing)
    struct.pack_into("=I", config, 8 + 52, _LO_FLAGS_READ_ONLY | _LO_FLAGS_AUTOCLEAR)
    try:
        for _ in range(_LOOP_TRIES):
            with open("/dev/loop-control", "rb", buffering=0) as control:
                path = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
            device = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _LOOP_CONFIGURE, bytes(config))
            except OSError as error:
                os.close(device)
                # Somebody else took the device between the two calls.
                if error.errno != errno.EBUSY:
                    raise
            except BaseException:
                os.close(device)
                raise
            else:
                return device, path
    except OSError as error:
        hint = "are you root, outside a container?" if error.errno in {errno.EPERM, errno.EACCES, errno.ENOENT} else ""
        raise HostError(f"cannot get a loop device for {image}: {error.strerror}", hint) from error
    raise Busy(f"cannot get a loop device for {image}: others were always faster", "try again")


def overlay(target: Path, *, lower: Sequence[Path], upper: Path | None = None, work: Path | None = None) -> None:
    """Mount an overlay of `lower` directories (topmost first) at `target`, writable when `upper` and `work` are given.

    `index=on` keeps hard links hard; `redirect_dir` and `metacopy` are off so that the upper directory alone says
    what changed, in the form that a layer carries. A capsule's set-uid programs are nothing for the users of this host.
    """
    with ExitStack() as opened:
        options = _overlay_options([_escape(path) for path in lower], upper, work)
        if len(options) > _MAX_OPTIONS:
            # Names as short as they can be, for the time of the call.
            options = _overlay_options([_descriptor(path, opened) for path in lower], upper, work)
        if len(options) > _MAX_OPTIONS:
            raise HostError(
                f"{len(lower)} layers are more than this kernel can lay over each other",
                "build the recipe again: that makes a version of one layer",
            )
        _mount("overlay", target, "overlay", MS_NODEV | MS_NOSUID | (0 if upper else MS_RDONLY), options)


def _overlay_options(lower: Sequence[str], upper: Path | None, work: Path | None) -> str:
    writable = f",upperdir={_escape(upper)},workdir={_escape(work)},index=on" if upper and work else ""
    return f"lowerdir={':'.join(lower)}{writable},redirect_dir=off,metacopy=off"


def _descriptor(path: Path, opened: ExitStack) -> str:
    number = os.open(path, os.O_PATH | os.O_CLOEXEC)
    opened.callback(os.close, number)
    return f"/proc/self/fd/{number}"


def _escape(path: Path) -> str:
    return str(path).replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


def is_mountpoint(path: Path) -> bool:
    """Whether something is mounted at `path`, bind mounts of the same file system included."""
    wanted = os.fspath(path.resolve())
    return any(line == wanted for line in mountpoints())


def mountpoints() -> list[str]:
    """Where this process sees something mounted, in the order of mounting."""
    raw = Path("/proc/self/mountinfo").read_bytes().decode(errors="surrogateescape")
    return [_unescape(line.split(" ")[4]) for line in raw.splitlines()]


def _unescape(text: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text


@resource
def layers(images: Sequence[Path], directory: Path) -> Iterator[Path]:
    """A read-only view of a chain of squashfs images, base first, below the scratch `directory`."""
    with ExitStack() as undo:

        def point(name: str) -> Path:
            place = directory / name
            place.mkdir()
            # Before it is mounted: mount(8) may be done when a signal or its end of memory makes it look failed.
            undo.callback(_unmount_if_mounted, place)
            return place

        points: list[Path] = []
        for number, image in enumerate(images):
            points.insert(0, point(f"layer-{number}"))
            squashfs(image, points[0])
        if len(points) > 1:
            view = point("view")
            overlay(view, lower=points)
            yield view
        else:
            yield points[0]


def _unmount_if_mounted(target: Path) -> None:
    if is_mountpoint(target):
        unmount(target)
