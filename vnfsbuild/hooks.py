"""Hooks: small programs that change a root during the build, run inside it, in the sandbox.

A hook is an executable under a hooks/ directory with a NAME.toml beside it that says what it does and which options it
takes, or a script written in the recipe. Options come as environment variables; a hook that gets one it does not know
is an error before anything is built.
"""

from __future__ import annotations

import hashlib
import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vnfsbuild.errors import CommandFailed, HookFailed, NotFound, RecipeError, did_you_mean
from vnfsbuild.host.sandbox import Bind, run_in
from vnfsbuild.progress import Step
from vnfsbuild.recipe import Hook, Phase

_INSIDE = "/run/vnfs/hook"


@dataclass(frozen=True, slots=True)
class Found:
    """A hook with the file to run and the options it was given."""

    hook: Hook
    program: Path
    env: tuple[tuple[str, str], ...]

    @property
    def digest(self) -> str:
        """Digest of everything that decides what the hook does."""
        content = hashlib.sha256(self.program.read_bytes()).hexdigest()
        text = repr((self.hook.phase.value, content, self.env, self.hook.network))
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def find(hooks: Iterable[Hook], *, recipe: Path, search: Sequence[Path], scratch: Path) -> tuple[Found, ...]:
    """Find the program of every hook before anything is built: beside the recipe in hooks/, then in `search`.

    Inline scripts are written into the empty directory `scratch`. Raises NotFound with the nearest name, or
    RecipeError for an option that the hook does not have or lacks.
    """
    places = (recipe.parent / "hooks", *search)
    return tuple(_find(hook, number, recipe, places, scratch) for number, hook in enumerate(hooks))


def _find(hook: Hook, number: int, recipe: Path, places: Sequence[Path], scratch: Path) -> Found:
    if hook.script:
        program = scratch / f"inline-{number}"
        text = hook.script if hook.script.startswith("#!") else f"#!/bin/sh\nset -eu\n{hook.script}"
        program.write_text(text if text.endswith("\n") else text + "\n")
        program.chmod(0o755)
        return Found(hook, program, hook.env)
    candidates = [Path(hook.run)] if Path(hook.run).is_absolute() else [place / hook.run for place in places]
    program = next((path for path in candidates if path.is_file()), Path())
    if program == Path():
        known = sorted({path.name for place in places if place.is_dir() for path in place.iterdir() if not path.suffix})
        hint = did_you_mean(hook.run, known, f"hooks here: {', '.join(known) or 'none'}")
        raise NotFound(f"{recipe}: there is no hook {hook.run}", hint)
    if not os.access(program, os.X_OK):
        raise RecipeError(f"{recipe}: the hook {program} is not executable", f"chmod +x {program}")
    return Found(hook, program, _options(hook, program, recipe))


def _options(hook: Hook, program: Path, recipe: Path) -> tuple[tuple[str, str], ...]:
    """What the hook is given, over its defaults. A hook without a description takes anything."""
    described = program.with_suffix(".toml")
    given = dict(hook.env)
    if not described.is_file():
        return hook.env
    options: Mapping[str, Mapping[str, str]] = tomllib.loads(described.read_text()).get("options", {})
    for name in given:
        if name not in options:
            raise RecipeError(
                f"{recipe}: the hook {hook.run} has no option {name}", f"its options: {', '.join(options)}"
            )
    missing = [name for name, option in options.items() if name not in given and "default" not in option]
    if missing:
        raise RecipeError(f"{recipe}: the hook {hook.run} needs {', '.join(missing)}", f"see {described}")
    defaults = {name: option["default"] for name, option in options.items() if "default" in option}
    return tuple(sorted((defaults | given).items()))


def run_phase(found: Iterable[Found], phase: Phase, root: Path, *, recipe: Path, step: Step) -> None:
    """Run the hooks of one phase, in the order of the recipe. Raises HookFailed with phase, name and last lines."""
    for item in found:
        if item.hook.phase is not phase:
            continue
        step.note(f"{phase} hook {item.hook.name}")
        env = dict(item.env) | {"VNFS_PHASE": phase.value}
        try:
            run_in(
                root, [_INSIDE], env=env, network=item.hook.network, binds=[Bind(item.program, _INSIDE, read_only=True)]
            )
        except CommandFailed as error:
            raise HookFailed(
                error.argv,
                error.returncode,
                error.tail,
                what=f"the {phase} hook {item.hook.name}",
                hint=f"to repeat it: vnfs build {recipe} --keep-failed DIR (DIR then holds the root to look at)",
            ) from error
        step.advance()
