"""The .deb container (deb(5)): an ar archive of `debian-binary`, a control member and a data member.

Reads control data, and rewrites a package with its data member uncompressed so that dpkg needs no decompressor.
Everything is streamed; sizes in the archive's own headers are checked against the file.
"""

from __future__ import annotations

import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import zstandard

from vnfsbuild.errors import TrustError

_MAGIC = b"!<arch>\n"
_HEADER = 60
_CHUNK = 1 << 20
_MAX_CONTROL = 64 << 20


@dataclass(frozen=True, slots=True)
class Member:
    """One member of the ar archive: where its bytes begin in the file, and how many they are."""

    name: str
    offset: int
    size: int


def members(stream: IO[bytes], label: str) -> tuple[Member, ...]:
    """The members of a .deb, in order. Raises TrustError naming `label` when it is not one."""
    if stream.read(len(_MAGIC)) != _MAGIC:
        raise TrustError(f"{label} is not a Debian package")
    end = stream.seek(0, io.SEEK_END)
    found, offset = [], len(_MAGIC)
    while offset + _HEADER <= end:
        stream.seek(offset)
        header = stream.read(_HEADER)
        try:
            size = int(header[48:58])
        except ValueError:
            raise TrustError(f"{label} is not a Debian package: a header is damaged") from None
        if size < 0 or offset + _HEADER + size > end:
            raise TrustError(f"{label} is truncated")
        found.append(Member(header[:16].decode("ascii", "replace").strip().rstrip("/"), offset + _HEADER, size))
        offset += _HEADER + size + (size & 1)
    return tuple(found)


def _one(found: tuple[Member, ...], prefix: str, label: str) -> Member:
    for member in found:
        if member.name == prefix or member.name.startswith(prefix + "."):
            return member
    raise TrustError(f"{label} is not a Debian package: it has no {prefix}")


def _decompressor(name: str, label: str) -> Callable[[IO[bytes]], Iterator[bytes]]:
    suffix = name.removeprefix("data.tar").removeprefix("control.tar")
    known: dict[str, Callable[[IO[bytes]], Iterator[bytes]]] = {"": _plain, ".gz": _gzip, ".xz": _xz, ".zst": _zstd}
    if suffix not in known:
        raise TrustError(f"{label} is compressed in a way that is not known: {name}")
    return known[suffix]


def _plain(source: IO[bytes]) -> Iterator[bytes]:
    return iter(lambda: source.read(_CHUNK), b"")


def _gzip(source: IO[bytes]) -> Iterator[bytes]:
    engine = zlib.decompressobj(31)
    for chunk in _plain(source):
        yield engine.decompress(chunk)
    yield engine.flush()
    if not engine.eof:
        raise EOFError("it ends too early")


def _xz(source: IO[bytes]) -> Iterator[bytes]:
    engine = lzma.LZMADecompressor()
    for chunk in _plain(source):
        data = chunk
        while True:
            yield engine.decompress(data, _CHUNK)
            if not engine.eof and engine.needs_input:
                break
            if engine.eof:
                if not engine.unused_data:
                    break
                data, engine = engine.unused_data, lzma.LZMADecompressor()
            else:
                data = b""
    if not engine.eof:
        raise EOFError("it ends too early")


def _zstd(source: IO[bytes]) -> Iterator[bytes]:
    with zstandard.ZstdDecompressor().stream_reader(source, read_across_frames=True) as reader:
        yield from iter(lambda: reader.read(_CHUNK), b"")


class _Window(io.RawIOBase):
    """The bytes of one member, as a stream."""

    def __init__(self, stream: IO[bytes], member: Member) -> None:
        self._stream, self._left = stream, member.size
        stream.seek(member.offset)

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        return data


def control(deb: Path) -> str:
    """The control stanza of a package. Raises TrustError."""
    with open(deb, "rb") as stream:
        member = _one(members(stream, deb.name), "control.tar", deb.name)
        data, total = [], 0
        for chunk in _decompressor(member.name, deb.name)(_Window(stream, member)):  # type: ignore[arg-type]
            total += len(chunk)
            if total > _MAX_CONTROL:
                raise TrustError(f"{deb.name}: its control data is too large")
            data.append(chunk)
    try:
        with tarfile.open(fileobj=io.BytesIO(b"".join(data))) as archive:
            for item in archive:
                if item.name.removeprefix("./") == "control" and (content := archive.extractfile(item)):
                    return content.read().decode("utf-8", "replace")
    except tarfile.TarError as error:
        raise TrustError(f"{deb.name}: its control data is damaged: {error}") from error
    raise TrustError(f"{deb.name} has no control file")


def uncompress(deb: Path, out: Path) -> None:
    """Write the package to `out` with its data member uncompressed and everything else as it is. Raises TrustError."""
    try:
        with open(deb, "rb") as stream, open(out, "wb") as target:
            found = members(stream, deb.name)
            data = _one(found, "data.tar", deb.name)
            target.write(_MAGIC)
            for member in found[: found.index(data)]:
                target.write(_header(member.name, member.size))
                for chunk in _plain(_Window(stream, member)):  # type: ignore[arg-type]
                    target.write(chunk)
                target.write(b"\n" * (member.size & 1))
            place, size = target.tell(), 0
            target.write(_header("data.tar", 0))
            for chunk in _decompressor(data.name, deb.name)(_Window(stream, data)):  # type: ignore[arg-type]
                size += target.write(chunk)
            target.write(b"\n" * (size & 1))
            target.seek(place)
            target.write(_header("data.tar", size))
    except (lzma.LZMAError, zlib.error, zstandard.ZstdError, EOFError) as error:
        raise TrustError(f"{deb.name} is damaged: {error}") from error


def _header(name: str, size: int) -> bytes:
    """An ar header as dpkg-deb writes it; time and owner are zero."""
    return f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{size:<10}`\n".encode("ascii")


def data_stream(deb: Path) -> IO[bytes]:
    """The tar of a package that `uncompress` wrote, as a file open at its first byte. The caller closes it."""
    stream = open(deb, "rb", buffering=0)  # noqa: SIM115
    try:
        member = _one(members(stream, deb.name), "data.tar", deb.name)
        if member.name != "data.tar":
            raise TrustError(f"{deb.name} still has compressed data")
        stream.seek(member.offset)
    except BaseException:
        stream.close()
        raise
    return stream
