"""`vnfs export`, `import`, `push`, `pull`: capsules on their way to other stores."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from vnfsbuild.cli.common import App, amount, command, identity

if TYPE_CHECKING:
    from vnfsbuild.deliver.transfer.registry import Moved

# Each form of file is a writer in deliver.transfer.export and a row here.
_FORMATS = click.Choice(["vnfs"])
_PLAIN = click.option("--plain-http", is_flag=True, help="Speak http: only inside a network you trust.")
_NAME = click.option("--name", metavar="NAME", help="Enter it as the next version of another name.")


@command("export", example="vnfs export compute:2 /srv/c.vnfs --force\nvnfs export compute - | ssh head vnfs import -")
@click.argument("capsule")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--format", "kind", type=_FORMATS, default="vnfs", show_default=True, help="The form of the file.")
@click.option("--force", is_flag=True, help="Replace FILE when it exists.")
def export_command(app: App, capsule: str, file: Path | None, kind: str, force: bool) -> None:
    """Write a capsule to a portable file (FILE: NAME-VERSION.vnfs here; - is standard output). The same version makes
    the same bytes."""
    from vnfsbuild.deliver.transfer.export import default_name, stream_vnfs, write_vnfs

    found = app.store.get(capsule)
    if str(file) == "-":
        stream_vnfs(app.store, found, _standard_output(app), monitor=app.monitor)
        return
    target = file or Path(default_name(found))
    target = (target / default_name(found) if target.is_dir() else target).absolute()
    size = write_vnfs(app.store, found, target, force=force, monitor=app.monitor)
    record = identity(found) | {"file": str(target), "format": kind, "bytes": size}
    app.emit(record, f"{found.reference} -> {target} ({amount(size)})")


def _standard_output(app: App) -> IO[bytes]:
    from vnfsbuild.errors import UsageError

    if app.json:
        raise UsageError("standard output cannot take the capsule and the answer of --json", "leave one of them out")
    if sys.stdout.isatty():
        raise UsageError("a capsule is not for a terminal to show", "pipe it to a program, or name a file")
    return sys.stdout.buffer


@command("import", example="vnfs import compute-2.vnfs\nssh head cat compute-2.vnfs | vnfs import -")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
@_NAME
def import_command(app: App, file: Path, name: str | None) -> None:
    """Take a capsule in from a file (- is standard input), under the name and number it bears. Nothing in it runs."""
    from vnfsbuild.deliver.transfer.importer import read_vnfs
    from vnfsbuild.errors import VnfsError

    if str(file) == "-":
        capsule = read_vnfs(app.store, sys.stdin.buffer, name=name, monitor=app.monitor)
    else:
        try:
            with open(file, "rb") as source:
                capsule = read_vnfs(app.store, source, name=name, monitor=app.monitor)
        except PermissionError as error:
            raise VnfsError(f"may not read {error.filename or file}") from error
    app.emit(identity(capsule), f"{capsule.reference} {capsule.digest}")


@command(
    "push",
    example="vnfs push compute registry.example.org/hpc/compute\nvnfs push compute:2 localhost:5000/c:test",
)
@click.argument("capsule")
@click.argument("place", metavar="REGISTRY/REPO[:TAG]")
@_PLAIN
def push_command(app: App, capsule: str, place: str, plain_http: bool) -> None:
    """Send a capsule to a registry: only the parts that it misses.

    Without TAG, the tag is the version's number; the newest version is tagged latest, too. Credentials are those of
    docker login, or VNFS_REGISTRY_USER and VNFS_REGISTRY_PASSWORD.
    """
    from vnfsbuild.deliver.transfer.registry import push
    from vnfsbuild.deliver.transfer.remote import Remote

    remote = Remote.parse(place)
    found = app.store.get(capsule)
    moved = push(app.store, found, remote, plain_http=plain_http, environ=os.environ, monitor=app.monitor)
    _say(app, moved, f"{found.reference} -> {moved.reference}")


@command("pull", example="vnfs pull registry.example.org/hpc/compute:2\nvnfs pull localhost:5000/c@sha256:<digest>")
@click.argument("place", metavar="REGISTRY/REPO[:TAG|@DIGEST]")
@_NAME
@_PLAIN
def pull_command(app: App, place: str, name: str | None, plain_http: bool) -> None:
    """Fetch a capsule from a registry: only the parts that are not here. Interrupted, it goes on when run again."""
    from vnfsbuild.deliver.transfer.registry import pull
    from vnfsbuild.deliver.transfer.remote import Remote

    remote = Remote.parse(place)
    moved = pull(app.store, remote, name=name, plain_http=plain_http, environ=os.environ, monitor=app.monitor)
    _say(app, moved, moved.reference)


def _say(app: App, moved: Moved, text: str) -> None:
    record = {
        **identity(moved.capsule),
        "reference": moved.reference,
        "moved_bytes": moved.bytes,
        "moved_blobs": moved.blobs,
        "skipped_blobs": moved.skipped,
    }
    counts = f"{amount(moved.bytes)} in {moved.blobs} blobs moved, {moved.skipped} blobs were there"
    app.emit(record, f"{text} {moved.capsule.digest}\n{counts}")
