"""Run programs inside a root: namespaces of their own, /proc, /dev and DNS set up, nothing left behind.

Everything is mounted in a mount namespace that only the program lives in. When it ends, whatever the reason, the
kernel takes namespace, mounts and stray children away; nothing in the root or on the host needs undoing. The name
comes from unshare(1) of util-linux, which does the work.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vnfsbuild.errors import CommandFailed, NotFound
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
_RESOLVER = "/run/.vnfs-resolv.conf"


@dataclass(frozen=True, slots=True)
class Bind:
    """Show `source` of the host at `target` inside: a directory on a directory, a file on a file. Both exist, but for
    a target below /run, which is the sandbox's own and made as needed."""

    source: Path
    target: str
    read_only: bool = False


def _script(root: Path, binds: Sequence[Bind], *, network: bool, cwd: str) -> str:
    """The set-up, as the shell script that runs in the new namespaces before chroot. $@ is the command."""
    at = shlex.quote(str(root))
    lines = [
        "set -e",
        f"cd {at}",
        "mkdir -p proc sys dev run; [ -e tmp ] || mkdir -m 1777 tmp",
        "mount -t proc -o nosuid,nodev,noexec proc proc",
        "mount -t sysfs -o ro,nosuid,nodev,noexec sysfs sys",
        "mount -t tmpfs -o mode=755,nosuid dev dev",
        "mkdir dev/pts dev/shm",
        *(f"touch dev/{name}; mount --bind /dev/{name} dev/{name}" for name in _DEVICES),
        "mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts dev/pts",
        "mount -t tmpfs -o mode=1777,nosuid,nodev shm dev/shm",
        "ln -s pts/ptmx dev/ptmx; ln -s /proc/self/fd dev/fd",
        "ln -s /proc/self/fd/0 dev/stdin; ln -s /proc/self/fd/1 dev/stdout; ln -s /proc/self/fd/2 dev/stderr",
        "mount -t tmpfs -o mode=755,nosuid,nodev run run; mkdir -m 1777 run/lock",
    ]
    if network:
        lines += [*_resolver_lines()]
    for bind in binds:
        source, target = shlex.quote(str(bind.source)), shlex.quote(bind.target.lstrip("/"))
        if bind.target.startswith("/run/"):
            place, made = (
                (target, "") if bind.source.is_dir() else (shlex.quote(str(Path(bind.target).parent)[1:]), target)
            )
            lines.append(f"mkdir -p {place}" + (f"; touch {made}" if made else ""))
        lines.append(f"mount --bind {source} {target}")
        if bind.read_only:
            lines.append(f"mount -o remount,bind,ro {target}")
    # The shell stays, as process 1 of the namespace: the kernel spares process 1 every signal that it does not handle,
    # so that Ctrl-C would not end a command that took its place.
    lines.append(f'exec chroot . sh -c \'cd "$0" && "$@"; exit $?\' {shlex.quote(cwd)} "$@"')
    return "\n".join(lines)


def _resolver_lines() -> list[str]:
    """Show the host's resolver configuration over the root's own. Where the root has none, or a link into its empty
    /run, a file in that /run is what a bind can be laid over without a trace in the root."""
    return [
        "if [ -L etc/resolv.conf ]; then",
        "  link=$(readlink etc/resolv.conf)",
        '  case "$link" in /run/*) place=".$link" ;; ../run/*) place="./${link#../}" ;; *) place= ;; esac',
        '  if [ -n "$place" ]; then mkdir -p "${place%/*}"; cat /etc/resolv.conf > "$place"; fi',
        "elif [ -f etc/resolv.conf ]; then",
        f"  cat /etc/resolv.conf > .{_RESOLVER}",
        f"  mount --bind .{_RESOLVER} etc/resolv.conf",
        "fi",
        "[ ! -f etc/hosts ] || [ ! -f /etc/hosts ] || { cat /etc/hosts > run/.vnfs-hosts; "
        "mount --bind run/.vnfs-hosts etc/hosts; }",
    ]


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
