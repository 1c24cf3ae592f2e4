"""Run programs inside a root: namespaces of their own, /proc, /dev and DNS set up, nothing left behind.

Everything is mounted in a mount namespace that only the program lives in. When it ends, whatever the reason, the
kernel takes namespace, mounts and stray children away; nothing in the root or on the host needs undoing. The name
comes from unshare(1) of util-linux, which does the work.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vnfsbuild.errors import CommandFailed, NotFound, TrustError
from vnfsbuild.host.fs import resolve_in
from vnfsbuild.host.run import Result, interactive, run, tail

_ENVIRONMENT = {
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
    "TERM": "dumb",
    "DEBIAN_FRONTEND": "noninteractive",
    "DEBCONF_NONINTERACTIVE_SEEN": "true",
}
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_RESOLVER, _HOSTS, _TABLE = "run/.vnfs-resolv.conf", "run/.vnfs-hosts", "run/.vnfs-mounts"
# mount -a passes over what it finds mounted already, even where that is hidden or is somebody else's: an administrator
# may have prepared the root for chroot. So our file systems have a source of their own, and /dev is made elsewhere.
_OURS, _DEV = "vnfs", "run/.vnfs-dev"
# Where the sandbox mounts file systems of its own.
_COVERED = ("proc", "sys", "dev", "run")


@dataclass(frozen=True, slots=True)
class Bind:
    """Show `source` of the host at `target` inside: a directory on a directory, a file on a file. Both exist, but for
    a target below /run, which is the sandbox's own and made as needed."""

    source: Path
    target: str
    read_only: bool = False


def _script(root: Path, binds: Sequence[Bind], *, network: bool, cwd: str) -> str:
    """The set-up, as the shell script that runs in the new namespaces before chroot. $@ is the command.

    It runs as root of the host beside a root that may be a stranger's: it touches nothing that a link in there leads
    to, because every path in it is one that `resolve_in` gave, or lies on what was mounted a line before. It starts
    as few programs as it can: a build comes through here twenty times.
    """
    root = root.absolute()
    _check_mount_points(root)
    lines = [
        "set -e",
        f"cd {shlex.quote(str(root))}",
        "mkdir -p proc sys dev run; [ -e tmp ] || [ -L tmp ] || mkdir -m 1777 tmp",
        "mount -t tmpfs -o mode=755,nosuid,nodev run run",
        # While /run is empty: what is made or shown there later is nothing that a link of the root may lead to.
        *([*_resolver_lines(root), *_hosts_lines(root)] if network else ()),
        f"mkdir {_DEV}; mkdir -m 1777 run/lock",
        _mounts(
            [
                (_OURS, root / "proc", "proc", "nosuid,nodev,noexec"),
                (_OURS, root / "sys", "sysfs", "ro,nosuid,nodev,noexec"),
                (_OURS, root / _DEV, "tmpfs", "mode=755,nosuid"),
            ]
        ),
        f"mkdir {_DEV}/pts {_DEV}/shm",
        " ".join(f">{_DEV}/{name}" for name in _DEVICES),
        f"ln -s pts/ptmx /proc/self/fd {_DEV}/",
        *(f"ln -s /proc/self/fd/{number} {_DEV}/{name}" for number, name in enumerate(("stdin", "stdout", "stderr"))),
    ]
    table = [
        *((f"/dev/{name}", root / _DEV / name, "none", "bind") for name in _DEVICES),
        (_OURS, root / _DEV / "pts", "devpts", "newinstance,ptmxmode=0666,mode=620,gid=5"),
        (_OURS, root / _DEV / "shm", "tmpfs", "mode=1777,nosuid,nodev"),
    ]
    for bind in binds:
        place = _place(root, bind.target)
        if place.parts[0] == "run":
            made = place if bind.source.is_dir() else place.parent
            lines.append(f"mkdir -p {shlex.quote(f'./{made}')}")
            if not bind.source.is_dir():
                lines.append(f">{shlex.quote(f'./{place}')}")
        table.append((str(bind.source), root / place, "none", "bind,ro" if bind.read_only else "bind"))
    lines += [_mounts(table), f"mount --move {_DEV} dev; rmdir {_DEV}"]
    # The shell stays, as process 1 of the namespace: the kernel spares process 1 every signal that it does not handle,
    # so that Ctrl-C would not end a command that took its place.
    lines.append(f'exec chroot . sh -c \'cd "$0" && "$@"; exit $?\' {shlex.quote(cwd)} "$@"')
    return "\n".join(lines)


def _mounts(table: Sequence[tuple[str, Path, str, str]]) -> str:
    """Shell lines that mount a table of (source, target, type, options) as fstab(5) has them, by one program."""
    rows = [" ".join((_escaped(source), _escaped(str(target)), *rest)) for source, target, *rest in table]
    text = " ".join(shlex.quote(row) for row in rows)
    return f"printf '%s\\n' {text} >{_TABLE}; mount -a -T {_TABLE}; rm {_TABLE}"


def _escaped(path: str) -> str:
    return "".join(f"\\{ord(letter):03o}" if letter in " \t\n\\#" else letter for letter in path)


def _check_mount_points(root: Path) -> None:
    for name in _COVERED:
        path = root / name
        if os.path.lexists(path) and not stat.S_ISDIR(os.lstat(path).st_mode):
            raise TrustError(
                f"/{name} in {root} is not a directory", "no program is run in such a root: it could reach out of it"
            )


def _place(root: Path, path: str) -> Path:
    """Where to mount what shall appear at `path`, relative to the root; below one of _COVERED it is on our own."""
    place = resolve_in(root, path, covered=_COVERED).relative_to(root)
    if not place.parts or place.parts[0] in _COVERED[:-1] or place == Path("run") or place.is_relative_to(_DEV):
        raise TrustError(f"{path} in {root} leads to /{place}", "no program is run in such a root")
    return place


def _resolver_lines(root: Path) -> list[str]:
    """Show the host's resolver configuration over the root's own. Where the root has a link into its empty /run, a
    file there is what is shown, without a trace in the root."""
    place = resolve_in(root, "/etc/resolv.conf", covered=_COVERED).relative_to(root)
    target = shlex.quote(f"./{place}")
    if place.parts[:1] == ("run",) and len(place.parts) > 1:
        return [f"mkdir -p {shlex.quote(f'./{place.parent}')}; cat /etc/resolv.conf > {target}"]
    if _is_file(root / place):
        return [f"cat /etc/resolv.conf > {_RESOLVER}; mount --bind {_RESOLVER} {target}"]
    return []


def _hosts_lines(root: Path) -> list[str]:
    place = resolve_in(root, "/etc/hosts", covered=_COVERED).relative_to(root)
    if place.parts[:1] in {(name,) for name in _COVERED} or not _is_file(root / place):
        return []
    target = shlex.quote(f"./{place}")
    return [f"[ ! -f /etc/hosts ] || {{ cat /etc/hosts > {_HOSTS}; mount --bind {_HOSTS} {target}; }}"]


def _is_file(path: Path) -> bool:
    return os.path.lexists(path) and stat.S_ISREG(os.lstat(path).st_mode)


def _command(root: Path, argv: Sequence[str], binds: Sequence[Bind], *, network: bool, cwd: str) -> list[str]:
    if not (root / "bin/sh").exists() and not (root / "bin/sh").is_symlink():
        raise NotFound(f"there is no root file system at {root}: it has no /bin/sh")
    spaces = ["--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child"]
    if not network:
        spaces.append("--net")
    script = _script(root, binds, network=network, cwd=cwd)
    return ["unshare", *spaces, "--", "sh", "-c", script, "sh", *argv]


def run_in(
    root: Path,
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    network: bool = False,
    binds: Sequence[Bind] = (),
    stdin: bytes | None = None,
    cwd: str = "/",
    check: bool = True,
    on_line: Callable[[str], None] | None = None,
    what: str = "",
) -> Result:
    """Run `argv` inside `root` to its end. Without `network` it has none, not even loopback.

    `on_line` hears each line as it is printed. Raises CommandFailed with the last lines, unless `check` is off.
    """
    result = run(
        _command(root, argv, binds, network=network, cwd=cwd),
        env=_ENVIRONMENT | dict(env or {}),
        stdin=stdin,
        join=True,
        check=False,
        on_line=on_line,
        what=what or argv[0],
    )
    if check and result.returncode != 0:
        # The set-up around it would only bury the command that failed.
        hint = f"inside {root} it ran: {shlex.join(argv)}"
        raise CommandFailed(argv, result.returncode, tail(result), what=what or argv[0], hint=hint)
    return result


def interactive_in(
    root: Path,
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    network: bool = True,
    binds: Sequence[Bind] = (),
    cwd: str = "/",
) -> int:
    """Run `argv` inside `root` on the caller's own terminal and return its exit code."""
    return interactive(_command(root, argv, binds, network=network, cwd=cwd), env=_ENVIRONMENT | dict(env or {}))
