"""What may stand in a recipe, and what is said of anything else: file, line, and the nearest key that there is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vnfsbuild.errors import RecipeError, UsageError, did_you_mean
from vnfsbuild.model import check_name
from vnfsbuild.recipe.words import Phase

SIZE = re.compile(r"(\d+)([KMG]?)")

# Key to type, nested as in the file: one table for reading and for messages.
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


def check(own: Mapping[str, Any], path: Path, text: str) -> None:
    """Check one file, `text`, that was read as `own`: keys, types and values. Raises RecipeError."""
    _check_types(own, _SCHEMA, path, text, ())
    _check_values(own, path, text)


def _check_types(value: Any, schema: Any, path: Path, text: str, keys: tuple[str, ...], nth: int = 0) -> None:
    where = f"{path}:{line_of(text, keys, nth)}"
    label = ".".join(keys)
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            raise RecipeError(f"{where}: {label} must be a table, not {_kind(value)}")
        for key, inner in value.items():
            if key not in schema and "*" not in schema:
                hint = did_you_mean(key, schema, f"keys here: {', '.join(schema)}")
                line = line_of(text, (*keys, key), nth)
                raise RecipeError(f"{path}:{line}: unknown key {'.'.join((*keys, key))}", hint)
            _check_types(inner, schema.get(key, schema.get("*")), path, text, (*keys, key), nth)
    elif isinstance(schema, list):
        if not isinstance(value, list):
            raise RecipeError(f"{where}: {label} must be an array of tables ([[{label}]]), not {_kind(value)}")
        for number, item in enumerate(value):
            _check_types(item, schema[0], path, text, keys, number)
    elif isinstance(schema, tuple):
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise RecipeError(f"{where}: {label} must be a list of strings")
    elif type(value) is not schema:
        names = {str: "a string", bool: "true or false"}
        raise RecipeError(f"{where}: {label} must be {names[schema]}, not {_kind(value)}")


def _check_values(own: Mapping[str, Any], path: Path, text: str) -> None:
    """What types alone do not say, checked in the file that says it."""

    def wrong(keys: tuple[str, ...], message: str, hint: str = "", nth: int = 0) -> RecipeError:
        return RecipeError(f"{path}:{line_of(text, keys, nth)}: {message}", hint)

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
    if not SIZE.fullmatch(size):
        raise wrong(("budget", "size"), f"budget.size is {size!r}", "write a number with K, M or G behind it: 400M")
    for item in own.get("files", {}).get("copy", ()):
        if not item.startswith("-") and not (path.parent / item).is_dir():
            raise wrong(("files", "copy"), f"files.copy names {item}, which is not a directory")


def check_removals(own: Mapping[str, Any], under: Any, path: Path, text: str, keys: tuple[str, ...] = ()) -> None:
    """Check that each entry "-name" of a file takes something out of `under`, what the file extends: else it is a slip
    of the pen, or its time is over. Raises RecipeError."""
    for key, value in own.items():
        old = under.get(key, {}) if isinstance(under, dict) else {}
        if isinstance(value, dict):
            check_removals(value, old, path, text, (*keys, key))
        for item in value if isinstance(value, list) else ():
            if isinstance(item, str) and item.startswith("-") and item[1:] not in old:
                there = [f"-{word}" for word in old]
                hint = did_you_mean(item, there, "nothing that it extends puts it there")
                label = ".".join((*keys, key))
                raise RecipeError(f"{path}:{line_of(text, (*keys, key))}: {label} has no {item[1:]} to take out", hint)


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


def line_of(text: str, keys: tuple[str, ...], nth: int = 0) -> int:
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
