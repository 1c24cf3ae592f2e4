"""Words that every part shares: names, references, digests, packages. No input or output happens here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vnfsbuild.errors import UsageError

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*\Z")
_TAG = re.compile(r"[A-Za-z_][A-Za-z0-9._-]*\Z")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_MAX_NAME = 128


def check_name(name: str) -> str:
    """Return `name` if it may name a capsule, else raise UsageError."""
    if len(name) > _MAX_NAME or not _NAME.match(name):
        raise UsageError(
            f"{name!r} is not a capsule name",
            f"a name is up to {_MAX_NAME} of a-z, 0-9, dot, dash and underscore, and begins with a letter or digit",
        )
    return name


def check_tag(tag: str) -> str:
    """Return `tag` if it may name a tag (a word that is not a number), else raise UsageError."""
    if len(tag) > _MAX_NAME or not _TAG.match(tag):
        raise UsageError(f"{tag!r} is not a tag", "a tag is a word that begins with a letter, such as stable")
    return tag


def check_digest(digest: str) -> str:
    """Return `digest` if it reads sha256:<64 hex digits>, else raise UsageError."""
    if not _DIGEST.match(digest):
        raise UsageError(f"{digest!r} is not a digest", "a digest is sha256: and 64 lower-case hexadecimal digits")
    return digest


def one_line(text: str) -> str:
    """Text from a stranger, fit for a terminal: one line of at most 300 characters, without control characters."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:300])


@dataclass(frozen=True, slots=True)
class Reference:
    """`NAME`, `NAME:VERSION`, `NAME:TAG` or `NAME@sha256:…`; at most one of version, tag and digest is set."""

    name: str
    version: int | None = None
    tag: str | None = None
    digest: str | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read a reference as typed. Raises UsageError naming the part that is wrong."""
        if "@" in text:
            name, digest = text.split("@", 1)
            return cls(check_name(name), digest=check_digest(digest))
        name, colon, rest = text.partition(":")
        check_name(name)
        if not colon:
            return cls(name)
        if rest.isascii() and rest.isdigit() and int(rest) > 0:
            return cls(name, version=int(rest))
        return cls(name, tag=check_tag(rest))

    def __str__(self) -> str:
        if self.digest:
            return f"{self.name}@{self.digest}"
        rest = self.version if self.version is not None else self.tag
        return self.name if rest is None else f"{self.name}:{rest}"


@dataclass(frozen=True, slots=True)
class Blob:
    """A sequence of bytes by content: `digest` is sha256:<hex>, `size` in bytes."""

    digest: str
    size: int

    @property
    def hex(self) -> str:
        return self.digest.removeprefix("sha256:")


@dataclass(frozen=True, slots=True, order=True)
class Package:
    """An installed package as its own database names it."""

    name: str
    version: str
    arch: str


class Fetcher(Protocol):
    """Gets one file over the network, verified, into the cache. Implemented by `fetch`, used by `family`."""

    def file(self, url: str, *, blob: Blob | None = None, limit: int | None = None) -> Path:
        """Return a local path with the content of `url`.

        With `blob` the content is checked against its digest and size, and served from the cache when already
        there. Without, it is downloaded anew and refused beyond `limit` bytes; the caller verifies it.
        Raises NetworkError (after retries, naming the URL) or TrustError.
        """
