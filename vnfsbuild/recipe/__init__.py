"""Recipes: TOML files read once, merged along `extends`, and checked to the last key.

An error names the file, the line and the nearest valid key. What comes out is frozen and complete: nothing behind this
package looks into TOML again.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vnfsbuild.errors import NotFound, RecipeError, UsageError
from vnfsbuild.model import check_name
from vnfsbuild.recipe.check import SIZE, check, check_removals, line_of
from vnfsbuild.recipe.words import Boot, Distro, Hook, Phase, Recipe, Repo, State

__all__ = ["Boot", "Distro", "Hook", "Phase", "Recipe", "Repo", "State", "load"]

_MAX_DEPTH = 16


def load(path: Path, *, search: Iterable[Path] = ()) -> Recipe:
    """Read the recipe at `path`. `extends` is looked for beside the file that says it, then in `search`.

    Raises RecipeError naming file and line, or NotFound.
    """
    path = path.absolute()
    merged = _load(path, tuple(search), ())
    return _build(path, merged)


def _load(path: Path, search: tuple[Path, ...], chain: tuple[Path, ...]) -> dict[str, Any]:
    if path in chain or len(chain) > _MAX_DEPTH:
        raise RecipeError(f"{path}: extends itself, through {' -> '.join(str(item) for item in chain)}")
    try:
        text = path.read_text()
        own = tomllib.loads(text)
    except FileNotFoundError:
        raise NotFound(f"there is no recipe {path}") from None
    except IsADirectoryError:
        raise NotFound(f"{path} is a directory, not a recipe") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: is not UTF-8 text: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(_syntax(path, str(error))) from error
    check(own, path, text)
    _anchor(own, path.parent)
    merged: dict[str, Any] = {}
    for word in own.pop("extends", ()):
        merged = _merge(merged, _load(_find(word, path, search, text), search, (*chain, path)))
    check_removals(own, merged, path, text)
    return _merge(merged, own)


def _syntax(path: Path, message: str) -> str:
    """What the TOML reader says ends in "(at line 3, column 1)"; we name lines as everywhere else."""
    said = re.fullmatch(r"(.*) \(at line (\d+), column (\d+)\)", message, re.DOTALL)
    return f"{path}:{said[2]}: not TOML: {said[1]} (column {said[3]})" if said else f"{path}: not TOML: {message}"


def _find(word: str, path: Path, search: tuple[Path, ...], text: str) -> Path:
    places = [path.parent / word, *(directory / word for directory in search)]
    for place in places:
        if place.is_file():
            return place.resolve()
    where = ", ".join(str(place) for place in places)
    raise RecipeError(
        f"{path}:{line_of(text, ('extends',))}: extends {word}, which is not there", f"looked at: {where}"
    )


def _anchor(own: dict[str, Any], base: Path) -> None:
    """Make the paths a file names absolute before it is merged into another: they are meant beside that file."""

    def anchored(item: str) -> str:
        return f"-{anchored(item[1:])}" if item.startswith("-") else str((base / item).resolve())

    files = own.get("files", {})
    if "copy" in files:
        files["copy"] = [anchored(item) for item in files["copy"]]
    packages = own.get("packages", {})
    if "local" in packages:
        packages["local"] = [anchored(item) for item in packages["local"]]
    for repo in own.get("repo", ()):
        if "key" in repo:
            repo["key"] = str(base / repo["key"])
    for hook in own.get("hook", ()):
        if "run" in hook and (base / "hooks" / hook["run"]).is_file():
            hook["run"] = str(base / "hooks" / hook["run"])
    distro = own.get("distro", {})
    if distro.get("keyring"):
        distro["keyring"] = str(base / distro["keyring"])


def _merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Tables merge, lists append (an entry "-name" takes "name" out), anything else is replaced."""
    merged = dict(under)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(value, dict):
            merged[key] = _merge(old if isinstance(old, dict) else {}, value)
        elif isinstance(value, list):
            merged[key] = _append(old if isinstance(old, list) else [], value)
        else:
            merged[key] = value
    return merged


def _append(old: list[Any], new: list[Any]) -> list[Any]:
    result = list(old)
    for item in new:
        if isinstance(item, str) and item.startswith("-"):
            result = [other for other in result if other != item[1:]]
        elif isinstance(item, dict) or item not in result:
            result.append(item)
    return result


def _build(path: Path, merged: dict[str, Any]) -> Recipe:
    name = merged.get("name", path.stem)
    try:
        check_name(name)
    except UsageError as error:
        raise RecipeError(f"{path}: name: {error.message}", error.hint) from error
    packages = merged.get("packages", {})
    groups = merged.get("groups", {})
    include = list(packages.get("include", ()))
    for group in packages.get("groups", ()):
        if group not in groups:
            known = ", ".join(sorted(groups)) or "none"
            raise RecipeError(f"{path}: packages.groups names {group}, which is no group", f"groups here: {known}")
        include = _append(include, groups[group].get("include", []))
    return Recipe(
        path=path,
        name=name,
        distro=_distro(path, merged.get("distro", {})),
        packages=tuple(include),
        recommends=packages.get("recommends", False),
        local=tuple(file for pattern in packages.get("local", ()) for file in _expand(path, pattern)),
        repos=tuple(_frozen(Repo, repo) for repo in merged.get("repo", ())),
        hooks=tuple(_hook(hook) for hook in merged.get("hook", ())),
        files=tuple(Path(item) for item in merged.get("files", {}).get("copy", ())),
        state=_frozen(State, merged.get("state", {})),
        boot=_frozen(Boot, merged.get("boot", {})),
        budget=_size(merged.get("budget", {}).get("size")),
    )


def _frozen(kind: type[Any], record: Mapping[str, Any]) -> Any:
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in record.items()})


def _distro(path: Path, record: Mapping[str, Any]) -> Distro:
    for key in ("id", "suite"):
        if not record.get(key):
            raise RecipeError(
                f"{path}: distro.{key} is missing", 'say it, or extend a base recipe: extends = ["base/…"]'
            )
    distro: Distro = _frozen(Distro, {"arch": "amd64"} | dict(record))
    return distro


def _hook(record: Mapping[str, Any]) -> Hook:
    env = tuple(sorted(record.get("env", {}).items()))
    return Hook(
        Phase(record["phase"]), record.get("run", ""), record.get("script", ""), env, record.get("network", False)
    )


def _expand(path: Path, pattern: str) -> list[Path]:
    full = Path(pattern)
    found = sorted(full.parent.glob(full.name))
    if not found:
        raise RecipeError(f"{path}: packages.local names {pattern}, and no file is there")
    return found


_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def _size(text: str | None) -> int | None:
    match = SIZE.fullmatch(text or "")
    return int(match[1]) * _UNITS[match[2]] if match else None
