"""What a recipe says, once it is read: frozen and complete."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path


class Phase(StrEnum):
    """When a hook runs: before the packages are installed, after, or last, on the tree that is packed."""

    PRE = "pre"
    POST = "post"
    PACK = "pack"


@dataclass(frozen=True, slots=True)
class Distro:
    """What to build: `id` is a row of the table of distributions, the rest overrides that row."""

    id: str
    suite: str
    arch: str
    mirror: str = ""
    components: tuple[str, ...] = ()
    keyring: str = ""


@dataclass(frozen=True, slots=True)
class Repo:
    """An extra repository: `key` is a file with the keys that may sign it."""

    uri: str
    suite: str
    components: tuple[str, ...]
    key: str


@dataclass(frozen=True, slots=True)
class Hook:
    """A program that changes the root during the build. `run` names a file under hooks/, else `script` is its text."""

    phase: Phase
    run: str = ""
    script: str = ""
    env: tuple[tuple[str, str], ...] = ()
    network: bool = False

    @property
    def name(self) -> str:
        return self.run or f"inline script ({self.script.strip().splitlines()[0][:40]})"


@dataclass(frozen=True, slots=True)
class State:
    """How a node keeps its root. `profile` names the directory of capsules/ that has the defaults; `livesync_skip` are
    patterns of paths that livesync leaves to the node, added to the profile's."""

    mode: str = "stateless"
    profile: str = "stateless"
    livesync_skip: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Boot:
    """Words for the kernel's command line, and kernel modules beyond network and storage."""

    cmdline: str = ""
    modules: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe, merged and checked. Paths are absolute. `budget` bounds the packed layers, in bytes."""

    path: Path
    name: str
    distro: Distro
    packages: tuple[str, ...]
    recommends: bool = False
    local: tuple[Path, ...] = ()
    repos: tuple[Repo, ...] = ()
    hooks: tuple[Hook, ...] = ()
    files: tuple[Path, ...] = ()
    state: State = field(default_factory=State)
    boot: Boot = field(default_factory=Boot)
    budget: int | None = None

    @property
    def digest(self) -> str:
        """Digest of everything the recipe says, wherever its file lies."""
        record = asdict(self)
        del record["path"]
        return _digest(record)

    @property
    def inputs(self) -> str:
        """Digest of what influences resolution alone: a lock made from other inputs is stale."""
        local = [[path.name, _content(path)] for path in self.local]
        distro = replace(self.distro, keyring=_content(self.distro.keyring))
        repos = [asdict(replace(repo, key=_content(repo.key))) for repo in self.repos]
        return _digest([asdict(distro), self.packages, self.recommends, local, repos])


def _content(path: Path | str) -> str:
    """What a file holds, wherever it lies; a missing one is an error of whoever reads it, not of the digest."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return str(path)


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
