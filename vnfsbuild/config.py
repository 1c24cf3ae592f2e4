"""Where things lie, and what the site says: command line over environment over configuration files over defaults.

Only the command line reads this; library functions are given the paths they need.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vnfsbuild.errors import VnfsError

SITE_FILE = Path("/etc/vnfs/vnfs.toml")
_KEYS = ("store", "cache", "work", "mirrors")


@dataclass(frozen=True, slots=True)
class Settings:
    """`store` holds capsules, `cache` what can be fetched again, `work` scratch space and mounts; `mirrors` maps a
    distribution's id to the URI that the site wants for it."""

    store: Path
    cache: Path
    work: Path
    mirrors: Mapping[str, str] = field(default_factory=dict)


def load(
    *,
    store: Path | None = None,
    cache: Path | None = None,
    work: Path | None = None,
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Settings from, first wins: the arguments, VNFS_STORE, VNFS_CACHE, VNFS_WORK, the user's file, the site's file,
    the defaults (root: below /var; else the XDG directories). `file` or VNFS_CONFIG replaces both files."""
    env = os.environ if environ is None else environ
    said = _files(file or (Path(env["VNFS_CONFIG"]) if env.get("VNFS_CONFIG") else None), env)
    root = os.geteuid() == 0
    home = Path(env.get("HOME") or "/root")
    data = Path("/var/lib/vnfs") if root else Path(env.get("XDG_DATA_HOME") or home / ".local/share") / "vnfs"
    caches = Path("/var/cache/vnfs") if root else Path(env.get("XDG_CACHE_HOME") or home / ".cache") / "vnfs"

    def choose(given: Path | None, key: str, default: Path) -> Path:
        word = given or env.get(f"VNFS_{key.upper()}") or said.get(key) or default
        return Path(word).expanduser().absolute()

    where = choose(store, "store", data)
    mirrors = dict(said.get("mirrors", {}))
    mirrors |= {
        key.removeprefix("VNFS_MIRROR_").lower(): value for key, value in env.items() if key.startswith("VNFS_MIRROR_")
    }
    return Settings(where, choose(cache, "cache", caches), choose(work, "work", where / "work"), mirrors)


def _files(given: Path | None, env: Mapping[str, str]) -> dict[str, Any]:
    user = Path(env.get("XDG_CONFIG_HOME") or Path(env.get("HOME") or "/root") / ".config") / "vnfs/vnfs.toml"
    merged: dict[str, Any] = {}
    for path in (given,) if given else (SITE_FILE, user):
        try:
            text = path.read_text()
        except FileNotFoundError:
            if given:
                raise VnfsError(f"there is no configuration file {path}") from None
            continue
        except UnicodeDecodeError as error:
            raise VnfsError(f"{path}: {error}") from error
        import tomllib  # noqa: PLC0415 - most hosts have no file, and need no parser

        try:
            said = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise VnfsError(f"{path}: {error}") from error
        for key, value in said.items():
            if key not in _KEYS or not isinstance(value, dict if key == "mirrors" else str):
                raise VnfsError(f"{path}: {key} is not a setting of that type", f"settings: {', '.join(_KEYS)}")
        merged |= said
    return merged


def data_directory(kind: str) -> Path:
    """Where the recipes, hooks or capsule profiles that come with vnfs are: in the wheel, or beside a checkout."""
    package = Path(__file__).parent
    packaged = package / "data" / kind
    return packaged if packaged.is_dir() else package.parent / kind
