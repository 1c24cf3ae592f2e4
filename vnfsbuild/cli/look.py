"""list, show, history, diff: looking at capsules. None of them needs root."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vnfsbuild.cli.common import ANSWERED_NO, App, amount, command, identity, printable_line, table

if TYPE_CHECKING:
    from vnfsbuild.deliver.diff import Difference, PathChange
    from vnfsbuild.store.manifest import Capsule

_HEADINGS = {"configuration": "configuration", "units": "units", "modules": "kernel modules", "files": "other files"}
_COUNTED = {
    "package": "files of the packages above",
    "books": "files in which the package tools keep their books",
    "time": "directories of which only the time changed",
}


@command("list", example="vnfs list\nvnfs list --json")
def list_command(app: App) -> None:
    """List the capsules in the store, with their newest version, size and tags, and whether they are mounted."""
    from vnfsbuild.deliver.edit.mounts import opened

    unknown = {"at": None, "reference": None}
    open_now = {
        name: {"at": state.at, "reference": state.reference} if state else unknown
        for name, state in opened(app.settings.work).items()
    }
    records = []
    for name in app.store.names():
        versions = app.store.versions(name)
        newest = app.store.get(f"{name}:{versions[-1]}")
        numbers = {app.store.get(f"{name}:{version}").digest: version for version in versions}
        tags = {tag: numbers.get(digest) for tag, digest in app.store.tags(name).items()}
        record = {
            "name": name,
            "versions": list(versions),
            "newest": versions[-1],
            **identity(newest),
            "created": newest.config.created,
            "tags": tags,
            "mounted": open_now.get(name),
        }
        records.append(record)
    app.emit(records, lambda: _listing(records) if records else f"no capsules in {app.store.root} yet: vnfs build")


def _mounted(where: dict[str, str | None] | None) -> str:
    if where is None:
        return "-"
    return f"{where['reference']} at {where['at']}" if where["at"] else "yes (root can see where)"


def _listing(records: list[dict[str, Any]]) -> str:
    rows = [
        (
            record["name"],
            str(record["newest"]),
            str(len(record["versions"])),
            amount(record["size"]),
            record["created"],
            " ".join(f"{tag}={version}" for tag, version in record["tags"].items()) or "-",
            _mounted(record["mounted"]),
        )
        for record in records
    ]
    return table(rows, head=("NAME", "NEWEST", "VERSIONS", "SIZE", "CREATED", "TAGS", "MOUNTED"))


@command("show", example="vnfs show compute\nvnfs show compute:3 --json")
@click.argument("reference")
def show_command(app: App, reference: str) -> None:
    """Show what a version is made of: digests, layers, kernel, packages, and where it came from."""
    capsule = app.store.get(reference)
    data = _details(app, capsule)
    app.emit(data, lambda: _description(data))


def _details(app: App, capsule: Capsule) -> dict[str, Any]:
    from vnfsbuild.store import sbom

    config = capsule.config
    toc = app.store.toc(capsule)
    parts = {"kernel": capsule.kernel, "initrd": capsule.initrd, "toc": capsule.toc, "sbom": capsule.sbom}
    tags = [tag for tag, digest in app.store.tags(config.name).items() if digest == capsule.digest]
    return {
        **identity(capsule),
        "created": config.created,
        "message": config.message,
        "parent": config.parent,
        "recipe": config.recipe,
        "lock": config.lock,
        "tags": tags,
        "distribution": f"{config.distro} {config.suite} {config.architecture}",
        "kernel": {"release": config.kernel.release, "cmdline": config.kernel.cmdline},
        "state": {"mode": config.state.mode, "livesync_skip": list(config.state.livesync_skip)},
        "packages": len(sbom.packages(app.store.blobs.read(capsule.sbom))),
        "paths": len(toc.entries),
        "content_bytes": toc.size,
        "layers": [{"digest": blob.digest, "size": blob.size} for blob in capsule.layers],
        "parts": {name: {"digest": blob.digest, "size": blob.size} for name, blob in parts.items()},
    }


def _description(data: dict[str, Any]) -> str:
    layers = [(f"layer {n}", f"{item['digest']}  {amount(item['size'])}") for n, item in enumerate(data["layers"])]
    parts = [(name, f"{item['digest']}  {amount(item['size'])}") for name, item in data["parts"].items()]
    rows = [
        ("reference", " ".join([data["reference"], *(f"({tag})" for tag in data["tags"])])),
        ("digest", data["digest"]),
        ("tree", data["tree"]),
        ("created", data["created"]),
        ("message", data["message"] or "-"),
        ("parent", data["parent"] or "none: built"),
        ("recipe", data["recipe"] or "-"),
        ("lock", data["lock"] or "-"),
        ("distribution", data["distribution"]),
        ("boots", f"{data['kernel']['release']} {data['kernel']['cmdline']}".rstrip()),
        ("state", data["state"]["mode"]),
        ("content", f"{data['packages']} packages, {data['paths']} paths, {amount(data['content_bytes'])}"),
        ("size", amount(data["size"])),
        *layers,
        *parts,
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name.ljust(width)}  {printable_line(value)}" for name, value in rows)


@command("history", example="vnfs history compute")
@click.argument("name")
def history_command(app: App, name: str) -> None:
    """List the versions of a capsule, newest first, with what was said about each and what it added."""
    from vnfsbuild.errors import NotFound
    from vnfsbuild.model import Reference

    ref = Reference.parse(name)
    app.store.get(Reference(ref.name))
    capsules = [app.store.get(Reference(ref.name, version=number)) for number in app.store.versions(ref.name)]
    if str(ref) != ref.name:
        newest = app.store.get(ref)
        capsules = [capsule for capsule in capsules if capsule.config.version <= newest.config.version]
    if not capsules:
        raise NotFound(f"there is no capsule {name}")
    known = {capsule.digest: capsule.reference for capsule in app.store.capsules()}
    records = [
        {
            "version": capsule.config.version,
            **identity(capsule),
            "created": capsule.config.created,
            "message": capsule.config.message,
            "delta": capsule.layers[-1].size if capsule.config.parent else sum(blob.size for blob in capsule.layers),
            "parent": capsule.config.parent,
            "parent_reference": known.get(capsule.config.parent),
        }
        for capsule in reversed(capsules)
    ]
    app.emit(records, lambda: _versions(records))


def _versions(records: list[dict[str, Any]]) -> str:
    rows = [
        (
            str(record["version"]),
            record["created"],
            amount(record["delta"]),
            record["parent_reference"] or record["parent"][:19] or "-",
            record["message"] or "-",
        )
        for record in records
    ]
    return table(rows, head=("VERSION", "CREATED", "ADDED", "FROM", "MESSAGE"))


@command("diff", example="vnfs diff compute:1 compute:2\nvnfs diff compute:1 compute:2 --all")
@click.argument("old")
@click.argument("new")
@click.option("--all", "everything", is_flag=True, help="Name the paths that are only counted otherwise, too.")
@click.option("--exit-code", is_flag=True, help="Exit with 3 when the two differ.")
def diff_command(app: App, old: str, new: str, everything: bool, exit_code: bool) -> int:
    """Show what changed from one version to another.

    Packages, configuration, units, accounts, set-id programs and capabilities, kernel modules, bytes. Files that come
    with a package that changed are counted, not named.
    """
    import tempfile
    from pathlib import Path

    from vnfsbuild.deliver.diff import diff

    with tempfile.TemporaryDirectory(prefix="vnfs-diff-") as scratch:
        found = diff(app.store, app.store.get(old), app.store.get(new), scratch=Path(scratch))
    app.emit(found.to_json(everything=everything), lambda: _difference(found, everything=everything))
    return ANSWERED_NO if exit_code and not found.empty else 0


def _difference(found: Difference, *, everything: bool) -> str:
    if found.empty:
        return f"{found.old} and {found.new} are the same tree"
    lines = [f"{found.old} -> {found.new}"]
    lines += _section("packages", [_package(item.name, item.before, item.after) for item in found.packages])
    shown = found.paths if everything else found.unexplained
    for group, title in _HEADINGS.items():
        lines += _section(title, [_path(change) for change in shown if change.group == group])
    lines += _section("accounts", list(found.accounts))
    lines += _section("privileges", [f"{change.path}: {change.detail}" for change in found.privileges])
    if not everything:
        for why, words in _COUNTED.items():
            count = sum(1 for change in found.paths if change.explained == why)
            if count:
                lines.append(f"and {count} {words}")
    lines.append(f"content {_signed(found.size)}, layers {_signed(found.stored)}")
    return "\n".join(lines)


def _section(title: str, lines: list[str]) -> list[str]:
    return [f"{title}:", *(f"  {printable_line(line)}" for line in lines)] if lines else []


def _package(name: str, before: str, after: str) -> str:
    if not before:
        return f"+ {name} {after}"
    return f"- {name} {before}" if not after else f"~ {name} {before} -> {after}"


def _path(change: PathChange) -> str:
    mark = {"added": "+", "deleted": "-"}.get(change.what[0], "~")
    words = "" if mark in "+-" else " " + ", ".join(change.what)
    return f"{mark} {change.path}{words}{f' ({change.detail})' if change.detail else ''}"


def _signed(number: int) -> str:
    return f"{'-' if number < 0 else '+'}{amount(abs(number))}"
