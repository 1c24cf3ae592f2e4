"""A Debian repository: its signed Release, and from there, by digest, its Packages files.

Nothing is believed that the Release does not vouch for, and the Release only for its signature, its suite and its age.
"""

from __future__ import annotations

import email.utils
import lzma
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from vnfsbuild.errors import NetworkError, NotFound, ResolveError, TrustError
from vnfsbuild.family import CachingFetcher, openpgp
from vnfsbuild.family.deb.control import parse_stanza
from vnfsbuild.family.deb.index import Index
from vnfsbuild.lockfile import LockedRepository
from vnfsbuild.model import Blob, Fetcher
from vnfsbuild.store.cas import CHUNK, LocalBlobs, hash_file

_MAX_RELEASE = 16 << 20
_MAX_INDEX = 1 << 30
_ENTRY = re.compile(r"([0-9a-f]{64})[ \t]+([0-9]{1,15})[ \t]+(\S+)")


@dataclass(frozen=True, slots=True)
class Repository:
    """What is asked for. `signers` empty: any key of `keyrings` may sign."""

    uri: str
    suite: str
    components: tuple[str, ...]
    keyrings: tuple[Path, ...]
    signers: tuple[str, ...] = ()

    @property
    def dists(self) -> str:
        return f"{self.uri}/dists/{self.suite}"


@dataclass(frozen=True, slots=True)
class Opened:
    """A repository that was trusted, and its indexes."""

    locked: LockedRepository
    indexes: tuple[Index, ...]


def open_repository(repo: Repository, arch: str, *, fetcher: CachingFetcher, now: datetime | None = None) -> Opened:
    """Fetch and check what `repo` has for `arch`. `now` (default: the clock's) is what Valid-Until is held against.

    Raises NetworkError, TrustError, or ResolveError for a component that is not there.
    """
    url = f"{repo.dists}/InRelease"
    path = fetcher.file(url, limit=_MAX_RELEASE)
    signed = openpgp.verify(path, what=url, keyrings=repo.keyrings, signers=repo.signers)
    release = parse_stanza(signed.content.decode(errors="replace"))
    _check_release(release, repo, url, now or datetime.now(UTC))
    entries = dict(_entries(release.get("SHA256", "")))
    names = list(_wanted(release, repo, arch, entries, url))
    indexes = tuple(_index(repo, name, release, entries, fetcher) for name in names)
    locked = LockedRepository(
        uri=repo.uri,
        suite=repo.suite,
        components=repo.components,
        release=hash_file(path).digest,
        signed_by=signed.signer,
        date=release.get("Date", ""),
    )
    return Opened(locked, indexes)


def _check_release(release: Mapping[str, str], repo: Repository, url: str, now: datetime) -> None:
    names = {release[key] for key in ("Suite", "Codename") if key in release}
    if names and repo.suite not in names:
        raise TrustError(
            f"{url} is the Release of {' or '.join(sorted(names))}, and {repo.suite} was asked for",
            "the mirror mixes up its suites, or somebody replays another's: use another mirror",
        )
    until = release.get("Valid-Until")
    if until:
        moment = _moment(until, url)
        if moment < now:
            raise TrustError(
                f"{url} expired on {moment:%Y-%m-%d %H:%M} UTC, {_ago(now, moment)} ago",
                "the mirror is stale or replays an old state: use another; or the clock here is wrong "
                f"({now:%Y-%m-%d %H:%M} UTC)",
            )


def _moment(text: str, url: str) -> datetime:
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except ValueError as error:
        raise TrustError(f"{url}: Valid-Until is {text!r}, which is no date") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _ago(now: datetime, then: datetime) -> str:
    hours = int((now - then).total_seconds() // 3600)
    return f"{hours // 24} days" if hours >= 48 else f"{hours} hours"


def _entries(text: str) -> Iterator[tuple[str, Blob]]:
    for line in text.splitlines():
        match = _ENTRY.fullmatch(line.strip())
        if match:
            yield match[3], Blob(f"sha256:{match[1]}", int(match[2]))


def _wanted(
    release: Mapping[str, str], repo: Repository, arch: str, entries: Mapping[str, Blob], url: str
) -> Iterator[str]:
    """Paths of the Packages files, without compression suffix."""
    # Debian lists Architecture: all packages in every architecture's file and says so with this field.
    separate = "all" in release.get("Architectures", "").split() and (
        "Packages" not in release.get("No-Support-for-Architecture-all", "").split()
    )
    for component in repo.components:
        found = [
            f"{component}/binary-{word}/Packages"
            for word in ((arch, "all") if separate else (arch,))
            if any(f"{component}/binary-{word}/Packages{suffix}" in entries for suffix in _UNPACK)
        ]
        if not found:
            raise ResolveError(
                f"{url} has no component {component} for {arch}",
                f"components: {release.get('Components', '?')}; architectures: {release.get('Architectures', '?')}",
            )
        yield from found


def _index(
    repo: Repository, name: str, release: Mapping[str, str], entries: Mapping[str, Blob], fetcher: CachingFetcher
) -> Index:
    plain = entries.get(name)
    if plain and plain.size > _MAX_INDEX:
        raise TrustError(f"{repo.dists}/{name} says it has {plain.size} bytes", "use another mirror")
    if plain and fetcher.blobs.has(plain):
        return Index(fetcher.blobs.path(plain), repo.uri)
    suffix = next(suffix for suffix in _UNPACK if name + suffix in entries)
    packed = _fetch(repo, name + suffix, entries[name + suffix], release, fetcher)
    if not suffix:
        return Index(packed, repo.uri)
    blob = _unpack(packed, suffix, plain, f"{repo.dists}/{name}{suffix}", fetcher.blobs)
    return Index(fetcher.blobs.path(blob), repo.uri)


def _fetch(repo: Repository, name: str, blob: Blob, release: Mapping[str, str], fetcher: Fetcher) -> Path:
    if release.get("Acquire-By-Hash", "").lower() == "yes":
        directory = name.rpartition("/")[0]
        try:
            return fetcher.file(f"{repo.dists}/{directory}/by-hash/SHA256/{blob.hex}", blob=blob)
        except NetworkError as error:
            if not isinstance(error, NotFound):  # some mirrors promise by-hash and do not carry it
                raise
    return fetcher.file(f"{repo.dists}/{name}", blob=blob)


def _unpack(packed: Path, suffix: str, expect: Blob | None, url: str, blobs: LocalBlobs) -> Blob:
    limit = expect.size if expect else _MAX_INDEX
    size = 0
    try:
        with open(packed, "rb") as source, blobs.receive() as incoming:
            for chunk in _UNPACK[suffix](source):
                size += len(chunk)
                if size > limit:
                    raise TrustError(f"{url} unpacks to more than {limit} bytes", "use another mirror")
                incoming.write(chunk)
            return incoming.commit(expect)
    except (lzma.LZMAError, zlib.error, EOFError) as error:
        raise TrustError(f"{url} cannot be unpacked: {error}", "use another mirror") from error


def _unxz(source: IO[bytes]) -> Iterator[bytes]:
    with lzma.open(source) as stream:
        yield from iter(lambda: stream.read(CHUNK), b"")


def _gunzip(source: IO[bytes]) -> Iterator[bytes]:
    stream = zlib.decompressobj(16 + zlib.MAX_WBITS)
    while not stream.eof:
        data = stream.unconsumed_tail or source.read(CHUNK)
        if not data:
            raise EOFError("it ends too early")
        yield stream.decompress(data, CHUNK)


def _as_is(source: IO[bytes]) -> Iterator[bytes]:
    return iter(lambda: source.read(CHUNK), b"")


_UNPACK: Mapping[str, Callable[[IO[bytes]], Iterator[bytes]]] = {".xz": _unxz, ".gz": _gunzip, "": _as_is}


def package_url(base: str, filename: str) -> str:
    """The URL of a package. Raises TrustError for a Filename that leads out of the repository."""
    words = filename.split("/")
    if not filename or filename.startswith("/") or any(word in {"", "..", "."} for word in words[1:] + words[:1]):
        # apt-ftparchive writes "./pool/…" for flat trees: harmless, and the only exception.
        if not filename.startswith("./"):
            raise TrustError(f"{base} names a package file {filename!r}, outside of itself", "do not use it")
        return package_url(base, filename[2:])
    if re.search(r"[\x00-\x20\x7f?#\\]", filename) or ("%" in filename and re.search(r"%(2e|2f)", filename, re.I)):
        raise TrustError(f"{base} names a package file {filename!r}", "do not use it")
    return f"{base}/{filename}"
