"""Recipes: TOML files read once, merged along `extends`, and checked to the last key.

An error names the file, the line and the nearest valid key. What comes out is frozen and complete: nothing behind this
module looks into TOML again.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from vnfsbuild.errors import NotFound, RecipeError, UsageError
from vnfsbuild.model import check_name

_MAX_DEPTH = 16


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


# ---- what may stand in a recipe: key to type, nested as in the file. One table for reading and for messages.

_STRINGS = (list, str)
_SCHEMA: Mapping[str, Any] = {
    "name": str,
    "extends": _STRINGS,
    "distro": {"id": str, "suite": str, "arch": str, "mirror": str, "components": _STRINGS, "keyring": str},
    "packages": {"include": _STRINGS, "groups": _STRINGS, "recommends": bool, "local": _STRINGS},
    "groups": {"*": {"include": _STRINGS}},
    "repo": [{"uri": str, "suite": str, "components": _STRINGS, "key": str}],
    "hook": [{"phase": str, "run": str, "script": str, "env": {"*": str}, "network": bool}],
    "files": {"copy": _STRINGS},
    "state": {"mode": str, "profile": str, "livesync_skip": _STRINGS},
    "boot": {"cmdline": str, "modules": _STRINGS},
    "budget": {"size": str},
}


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
    _check(own, _SCHEMA, path, text, ())
    _check_values(own, path, text)
    _anchor(own, path.parent)
    merged: dict[str, Any] = {}
    for word in own.pop("extends", ()):
        merged = _merge(merged, _load(_find(word, path, search, text), search, (*chain, path)))
    _check_removals(own, merged, path, text, ())
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
    raise RecipeError(f"{path}:{_line(text, ('extends',))}: extends {word}, which is not there", f"looked at: {where}")


def _check(value: Any, schema: Any, path: Path, text: str, keys: tuple[str, ...], nth: int = 0) -> None:
    where = f"{path}:{_line(text, keys, nth)}"
    label = ".".join(keys)
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            raise RecipeError(f"{where}: {label} must be a table, not {_kind(value)}")
        for key, inner in value.items():
            if key not in schema and "*" not in schema:
                near = difflib.get_close_matches(key, schema, 1)
                hint = f"did you mean {near[0]}?" if near else f"keys here: {', '.join(schema)}"
                line = _line(text, (*keys, key), nth)
                raise RecipeError(f"{path}:{line}: unknown key {'.'.join((*keys, key))}", hint)
            _check(inner, schema.get(key, schema.get("*")), path, text, (*keys, key), nth)
    elif isinstance(schema, list):
        if not isinstance(value, list):
            raise RecipeError(f"{where}: {label} must be an array of tables ([[{label}]]), not {_kind(value)}")
        for number, item in enumerate(value):
            _check(item, schema[0], path, text, keys, number)
    elif isinstance(schema, tuple):
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise RecipeError(f"{where}: {label} must be a list of strings")
    elif type(value) is not schema:
        names = {str: "a string", bool: "true or false"}
        raise RecipeError(f"{where}: {label} must be {names[schema]}, not {_kind(value)}")


def _check_values(own: Mapping[str, Any], path: Path, text: str) -> None:
    """What types alone do not say, checked in the file that says it."""

    def wrong(keys: tuple[str, ...], message: str, hint: str = "", nth: int = 0) -> RecipeError:
        return RecipeError(f"{path}:{_line(text, keys, nth)}: {message}", hint)

    if "name" in own:
        try:
            check_name(own["name"])
        except UsageError as error:
            raise wrong(("name",), f"name: {error.message}", error.hint) from error
    for number, hook in enumerate(own.get("hook", ())):
        if hook.get("phase") not in list(Phase):
            said = repr(hook["phase"]) if "phase" in hook else "missing"
            raise wrong(("hook", "phase"), f"hook.phase is {said}", f"phases: {', '.join(Phase)}", number)
        if bool(hook.get("run")) == bool(hook.get("script", "").strip()):
            message = "a [[hook]] needs run (a file under hooks/) or script (its text), and not both"
            raise wrong(("hook", "run"), message, nth=number)
    for number, repo in enumerate(own.get("repo", ())):
        missing = [key for key in ("uri", "suite", "components", "key") if not repo.get(key)]
        if missing:
            hint = "key is the file with the key that signs it"
            raise wrong(("repo", missing[0]), f"a [[repo]] lacks {', '.join(missing)}", hint, number)
        if not (path.parent / repo["key"]).is_file():
            raise wrong(("repo", "key"), f"repo.key names {repo['key']}, and no file is there", nth=number)
    mode = own.get("state", {}).get("mode", "stateless")
    if mode != "stateless":
        raise wrong(("state", "mode"), f"state.mode is {mode!r}", "this version of vnfs builds stateless capsules")
    size = own.get("budget", {}).get("size", "0")
    if not _SIZE.fullmatch(size):
        raise wrong(("budget", "size"), f"budget.size is {size!r}", "write a number with K, M or G behind it: 400M")
    for item in own.get("files", {}).get("copy", ()):
        if not item.startswith("-") and not (path.parent / item).is_dir():
            raise wrong(("files", "copy"), f"files.copy names {item}, which is not a directory")


def _check_removals(own: Mapping[str, Any], under: Any, path: Path, text: str, keys: tuple[str, ...]) -> None:
    """An entry "-name" that takes nothing out is a slip of the pen, or its time is over."""
    for key, value in own.items():
        old = under.get(key, {}) if isinstance(under, dict) else {}
        if isinstance(value, dict):
            _check_removals(value, old, path, text, (*keys, key))
        for item in value if isinstance(value, list) else ():
            if isinstance(item, str) and item.startswith("-") and item[1:] not in old:
                near = difflib.get_close_matches(item[1:], old, 1)
                hint = f"did you mean -{near[0]}?" if near else "nothing that it extends puts it there"
                label = ".".join((*keys, key))
                raise RecipeError(f"{path}:{_line(text, (*keys, key))}: {label} has no {item[1:]} to take out", hint)


def _kind(value: object) -> str:
    names = {
        dict: "a table",
        list: "a list",
        str: "a string",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), f"a {type(value).__name__}")


def _line(text: str, keys: tuple[str, ...], nth: int = 0) -> int:
    """The line that says `keys`: the key itself, below the header of its table (the `nth` of that name), if it has one.
    TOML readers in the standard library do not tell, so this looks for it; at worst it names the table."""
    if not keys:
        return 1
    lines = text.splitlines()
    start, found = 0, 1
    for depth in range(len(keys) - 1, 0, -1):
        header = re.compile(r"\s*\[\[?\s*" + r"\s*\.\s*".join(re.escape(key) for key in keys[:depth]) + r"\s*\]")
        matches = [number for number, line in enumerate(lines) if header.match(line)]
        if matches:
            start = matches[min(nth, len(matches) - 1)]
            found = start + 1
            break
    last = re.escape(keys[-1])
    wanted = re.compile(rf'\s*\[*\s*(?:[\w.-]+\.)?"?{last}"?\s*(?:=|\])|.*[{{,]\s*{last}\s*=')
    return next((number + 1 for number in range(start, len(lines)) if wanted.match(lines[number])), found)


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
_SIZE = re.compile(r"(\d+)([KMG]?)")


def _size(text: str | None) -> int | None:
    match = _SIZE.fullmatch(text or "")
    return int(match[1]) * _UNITS[match[2]] if match else None
