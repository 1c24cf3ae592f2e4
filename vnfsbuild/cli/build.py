"""`vnfs lock` and `vnfs build`."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vnfsbuild.cli.common import App, amount, command, identity
from vnfsbuild.errors import Interrupted, NotFound, RecipeError, VnfsError

if TYPE_CHECKING:
    from vnfsbuild.lockfile import Lock
    from vnfsbuild.pipeline import Report, Tools

RECIPE = click.Path(path_type=Path)


def _tools(app: App, mirror: str | None) -> Tools:
    from vnfsbuild.config import data_directory
    from vnfsbuild.pipeline import Tools

    settings = app.settings
    return Tools(app.store, settings.cache, settings.work, settings.mirrors, data_directory, app.monitor, mirror or "")


def _find(recipe: Path) -> Path:
    """A recipe by its path, or by its name among those that come with vnfs."""
    from vnfsbuild.config import data_directory

    if recipe.exists() or recipe.parent != Path():
        return recipe
    packaged = data_directory("recipes") / recipe.with_suffix(".toml")
    if not packaged.is_file():
        known = ", ".join(sorted(path.stem for path in packaged.parent.glob("*.toml")))
        raise NotFound(f"there is no recipe {recipe}", f"name a file, or one of those that come with vnfs: {known}")
    return packaged


@command("lock", example="vnfs lock recipes/debian-12-compute.toml\nvnfs lock compute.toml --update")
@click.argument("recipe", type=RECIPE)
@click.option("--update", is_flag=True, help="Resolve anew even if the lock still fits.")
@click.option("--check", is_flag=True, help="Change nothing; exit 3 when the lock is missing or stale.")
@click.option("--mirror", metavar="URI", help="Mirror of the distribution, before every other setting.")
def lock_command(app: App, recipe: Path, update: bool, check: bool, mirror: str | None) -> None:
    """Resolve RECIPE from the signed indexes of its repositories and write its lock beside it.

    RECIPE is a file, or the name of a recipe that comes with vnfs; the lock of one that was installed with vnfs lies
    in the store, below locks/.
    """
    from vnfsbuild import lockfile, pipeline

    tools = _tools(app, mirror)
    wanted = pipeline.load(_find(recipe), tools)
    path = pipeline.lock_path(wanted, tools)
    before = None
    with suppress(RecipeError):  # it is made anew, or refused by --check
        before = lockfile.read(path)
    held = pipeline.lock(wanted, tools, update=update, locked=check)
    changes = _changes(before, held)
    data = {
        "lock": str(path),
        "digest": held.digest,
        "packages": len(held.packages),
        "size": sum(package.size for package in held.packages),
        "changes": changes,
    }
    size = amount(data["size"])  # type: ignore[arg-type]
    app.emit(data, lambda: "\n".join([f"{path}: {len(held.packages)} packages, {size} to fetch", *changes]))


def _changes(before: Lock | None, after: Lock) -> list[str]:
    """What the lock says now that it did not say before, one package a line."""
    if before is None:
        return []
    old = {package.name: package.version for package in before.packages}
    new = {package.name: package.version for package in after.packages}
    lines = []
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            lines.append(f"  {name} {old.get(name, '(new)')} -> {new.get(name, '(gone)')}")
    return lines


@command("build", example="vnfs build debian-12-compute\nvnfs build compute.toml --locked --tag stable")
@click.argument("recipes", metavar="RECIPE...", type=RECIPE, nargs=-1, required=True)
@click.option("--locked", is_flag=True, help="Fail (exit 3) instead of resolving when the lock is missing or stale.")
@click.option("--tag", help="Also name the new version NAME:TAG.")
@click.option("--mirror", metavar="URI", help="Mirror of the distribution, before every other setting.")
@click.option("--keep-failed", metavar="DIR", type=RECIPE, help="Keep the root of a failed build in DIR.")
def build_command(
    app: App, recipes: tuple[Path, ...], locked: bool, tag: str | None, mirror: str | None, keep_failed: Path | None
) -> None:
    """Compile each RECIPE into the next version of its capsule. Needs root.

    RECIPE is a file, or the name of a recipe that comes with vnfs. With --json one RECIPE is answered by an object,
    several by a list of them; an error names as "done" those that were built before.
    """
    from vnfsbuild import pipeline
    from vnfsbuild.host import mount
    from vnfsbuild.host.interrupt import resume
    from vnfsbuild.host.user import require_root
    from vnfsbuild.model import check_tag

    if tag:
        check_tag(tag)
    require_root("vnfs build", pipeline.WITHOUT_ROOT)
    # From here on our mounts are ours alone: the kernel takes them away with this process, however it ends.
    mount.isolate()
    # Nor does the caller's umask reach into the root.
    os.umask(0o022)
    tools = _tools(app, mirror)
    records: list[dict[str, Any]] = []
    try:
        for recipe in recipes:
            resume()  # a Ctrl-C that came too late for the recipe before
            report = pipeline.build(_find(recipe), tools, locked=locked, tag=tag, keep_failed=keep_failed)
            records.append(_record(report))
            if not app.json:
                app.emit(None, _text(report))
    except KeyboardInterrupt:
        interruption = Interrupted()
        interruption.done = records
        raise interruption from None
    except VnfsError as error:
        error.done = records
        raise
    if app.json:
        app.emit(records[0] if len(records) == 1 else records)


def _record(report: Report) -> dict[str, Any]:
    capsule = report.capsule
    return {
        **identity(capsule),
        "kernel": capsule.config.kernel.release,
        "layers": [{"digest": layer.digest, "size": layer.size} for layer in capsule.layers],
        "initrd_size": capsule.initrd.size,
        "ram": capsule.memory,
        "published": report.fresh,
        "losses": list(report.losses),
    }


def _text(report: Report) -> str:
    capsule = report.capsule
    lines = [
        capsule.reference if report.fresh else f"{capsule.reference} (nothing changed: no new version)",
        f"  digest  {capsule.digest}",
        f"  tree    {capsule.config.tree}",
        f"  size    {amount(capsule.size)} (initrd {amount(capsule.initrd.size)})",
        f"  ram     a stateless node needs about {amount(capsule.memory)}",
        f"  kernel  {capsule.config.kernel.release}",
    ]
    lines += [f"  lost    {loss}" for loss in report.losses]
    return "\n".join(lines)
