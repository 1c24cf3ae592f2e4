"""The table of distributions, typed. Data alone: what differs between releases is a row of distros.toml."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from typing import Any

from vnfsbuild.errors import UsageError, did_you_mean


class MergedUsr(StrEnum):
    """Who makes /bin, /lib and /sbin point into /usr."""

    LINKS = "links"  # we do, before anything is unpacked
    BASE_FILES = "base-files"  # the package base-files ships the links


@dataclass(frozen=True, slots=True)
class Pocket:
    """A suite of an archive ("main" or "security"); a release is several, of which the newest version wins."""

    archive: str
    suite: str


@dataclass(frozen=True, slots=True)
class Release:
    """A row: one release of a distribution. `suite` is its codename, `version` its number; `archives` maps an archive
    to the last part of its usual path; `kernel` is a glob below the root; `signers` are primary keys by fingerprint."""

    id: str
    family: str
    title: str
    suite: str
    version: str
    archives: tuple[tuple[str, str], ...]
    components: tuple[str, ...]
    architectures: tuple[str, ...]
    keyrings: tuple[str, ...]
    keyring_package: str
    mirror_info: str
    kernel: str
    tools: tuple[str, ...]
    merged_usr: MergedUsr
    pockets: tuple[Pocket, ...]
    signers: tuple[str, ...]


@functools.cache
def _table() -> Mapping[str, Any]:
    return tomllib.loads(resources.files("vnfsbuild.family").joinpath("distros.toml").read_text())


def family_of(distro: str) -> str:
    """The family that handles `distro`. Raises UsageError naming the nearest that is known."""
    table = _table()
    if distro not in table:
        raise UsageError(f"unknown distribution {distro}", did_you_mean(distro, table, _known(table)))
    return str(table[distro]["family"])


def release(distro: str, suite: str) -> Release:
    """The row for `suite` (codename or version number) of `distro`. Raises UsageError naming the nearest."""
    family_of(distro)
    record = dict(_table()[distro])
    suites = record.pop("suites")
    name = suite if suite in suites else next((key for key in suites if suites[key]["version"] == suite), "")
    if not name:
        raise UsageError(f"unknown suite {suite} of {distro}", did_you_mean(suite, suites, _known(suites)))
    row = record | suites[name]
    row |= {
        "archives": tuple(row["archives"].items()),
        "pockets": tuple(Pocket(**pocket) for pocket in row["pockets"]),
        "merged_usr": MergedUsr(row["merged_usr"]),
    }
    frozen: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
    return Release(id=distro, suite=name, **frozen)


def releases() -> tuple[Release, ...]:
    """Every row."""
    return tuple(release(distro, suite) for distro, record in _table().items() for suite in record["suites"])


def _known(words: Mapping[str, object]) -> str:
    return f"known: {', '.join(words)}"
