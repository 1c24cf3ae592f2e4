"""The lock: exactly which packages a recipe means, from which signed indexes. Written beside the recipe.

A lock is TOML that a person can read in a review: one table per repository, one line per package. It also covers
the settings that influence resolution, so that a stale lock is found without resolving again.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vnfsbuild.errors import RecipeError
from vnfsbuild.model import Blob, Package, check_digest

FORMAT = 1


@dataclass(frozen=True, slots=True)
class LockedRepository:
    """A repository as it was trusted: `release` is the digest of its signed Release file, `signed_by` the fingerprint
    of the key that signed it, `date` what the Release says of its age (as written there)."""

    uri: str
    suite: str
    components: tuple[str, ...]
    release: str
    signed_by: str
    date: str = ""


@dataclass(frozen=True, slots=True)
class LockedPackage:
    """One package to install: where it is (`url`), what it must be (`size` in bytes, `sha256` as a digest), and why
    the installer treats it specially (`essential`: extracted before anything runs)."""

    name: str
    version: str
    arch: str
    url: str
    size: int
    sha256: str
    essential: bool = False

    @property
    def package(self) -> Package:
        return Package(self.name, self.version, self.arch)

    @property
    def blob(self) -> Blob:
        return Blob(self.sha256, self.size)


@dataclass(frozen=True, slots=True)
class Lock:
    """`inputs` is the digest of everything in the recipe that influences resolution; `packages` are sorted by name;
    `tools` are packages that are fetched for the initrd but not installed."""

    inputs: str
    distro: str
    suite: str
    arch: str
    repositories: tuple[LockedRepository, ...]
    packages: tuple[LockedPackage, ...]
    tools: tuple[LockedPackage, ...] = ()

    @property
    def digest(self) -> str:
        return f"sha256:{hashlib.sha256(dump(self).encode()).hexdigest()}"


def dump(lock: Lock) -> str:
    """The lock as text; equal locks give equal text."""
    lines = [
        "# Written by `vnfs lock`: the exact packages of the recipe beside it. Review it, commit it, do not edit it.",
        f"format = {FORMAT}",
        *(f"{key} = {_quote(getattr(lock, key))}" for key in ("inputs", "distro", "suite", "arch")),
    ]
    # TOML wants top-level keys before the first table.
    for key, packages in (("packages", lock.packages), ("tools", lock.tools)):
        lines += ["", f"{key} = [", *(f"  {_inline(item)}," for item in packages), "]"]
    for repo in lock.repositories:
        lines += ["", "[[repository]]", f"uri = {_quote(repo.uri)}", f"suite = {_quote(repo.suite)}"]
        lines += [f"components = [{', '.join(map(_quote, repo.components))}]"]
        lines += [f"{key} = {_quote(getattr(repo, key))}" for key in ("release", "signed_by", "date")]
    return "\n".join(lines) + "\n"


def _inline(item: LockedPackage) -> str:
    words = [f"{key} = {_quote(getattr(item, key))}" for key in ("name", "version", "arch")]
    words += [f"size = {item.size}", f"sha256 = {_quote(item.sha256)}", f"url = {_quote(item.url)}"]
    if item.essential:
        words.append("essential = true")
    return "{ " + ", ".join(words) + " }"


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    if any(ord(character) < 32 or ord(character) == 127 for character in escaped):
        raise RecipeError(f"{text!r} cannot be written into a lock")
    return f'"{escaped}"'


def parse(text: str, *, source: str = "lock") -> Lock:
    """Read a lock. Raises RecipeError naming `source` and what is wrong."""
    try:
        record = tomllib.loads(text)
        if record["format"] != FORMAT:
            raise ValueError(f"its format is {record['format']}, this vnfs reads {FORMAT}")
        return Lock(
            inputs=record["inputs"],
            distro=record["distro"],
            suite=record["suite"],
            arch=record["arch"],
            repositories=tuple(
                LockedRepository(**repo | {"components": tuple(repo["components"])})
                for repo in record.get("repository", ())
            ),
            packages=_packages(record.get("packages", ())),
            tools=_packages(record.get("tools", ())),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise RecipeError(f"{source} is not a lock: {error}", "make it again: vnfs lock RECIPE") from error


def _packages(records: Iterable[dict[str, Any]]) -> tuple[LockedPackage, ...]:
    packages = tuple(LockedPackage(**record) for record in records)
    for item in packages:
        check_digest(item.sha256)
        if type(item.size) is not int or item.size < 0:
            raise ValueError(f"{item.name} has no size")
    return packages


def path_for(recipe: Path) -> Path:
    """The lock's place: `compute.toml` has `compute.lock` beside it."""
    return recipe.with_suffix(".lock")


def read(path: Path) -> Lock | None:
    """The lock at `path`, or None when there is none yet."""
    try:
        return parse(path.read_text(), source=str(path))
    except FileNotFoundError:
        return None
