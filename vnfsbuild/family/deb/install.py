"""Packages into a root, by the distribution's own tools.

First what dpkg needs to run is extracted; then the root's own dpkg, inside the root, unpacks and configures everything,
so that scripts, triggers, diversions, alternatives and the package database are dpkg's work from the first package on.
What we arrange around it (no daemons, no initramfs) is laid over the root from outside, in dpkg's own mount namespace,
and leaves no trace.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from vnfsbuild.errors import CommandFailed, VnfsError
from vnfsbuild.family.deb.archive import data_stream
from vnfsbuild.family.deb.inventory import inventory
from vnfsbuild.family.deb.order import batches
from vnfsbuild.family.deb.supply import Supply
from vnfsbuild.host.fs import atomic_write, resolve_in
from vnfsbuild.host.interrupt import resource
from vnfsbuild.host.run import run
from vnfsbuild.host.sandbox import Bind, run_in
from vnfsbuild.lockfile import Lock
from vnfsbuild.progress import Monitor, Step

_INSIDE = "/run/vnfs/packages"
_DPKG = ("dpkg", "--force-unsafe-io", "--force-confdef", "--force-confold", "--no-debsig")
# base-passwd brings /etc/passwd, base-files the directories: others' scripts count on both.
_FIRST = ("base-passwd", "base-files")
# How many calls of dpkg a round of unpacking is split into, so that it begins before all packages are uncompressed.
_BATCHES = 4

# Programs that package scripts call and that must do nothing, and succeed, while a root is being built: daemons are
# started on nodes, and the initrd is composed once, by us, at the end. ischroot would say no, because dpkg has a
# process namespace of its own, and the C library's script would then ask init to start anew, and sleep.
_STAND_INS = (
    "usr/bin/dracut",
    "usr/bin/ischroot",
    "usr/sbin/invoke-rc.d",
    "usr/sbin/start-stop-daemon",
    "usr/sbin/update-grub",
    "usr/sbin/update-initramfs",
)
_STAND_IN = "#!/bin/sh\n# Laid over the real program while packages are configured.\nexit 0\n"
_POLICY = b"#!/bin/sh\nexit 101\n"
# sshd's script makes a machine's keys where there are none: seconds of work for secrets that no image may hold.
_HOST_KEYS = tuple(f"/etc/ssh/ssh_host_{kind}_key" for kind in ("rsa", "ecdsa", "ed25519"))


def bootstrap(root: Path, packages: Supply, *, usr_links: Sequence[str]) -> None:
    """Extract what dpkg and its scripts need to run: afterwards programs run inside `root`, and no package is
    installed yet. `usr_links` are the top directories to make as links into /usr, where the suite's own base-files
    does not ship them."""
    for name in usr_links:
        (root / "usr" / name).mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(f"usr/{name}")
    for name in (package.name for package in packages.lock.packages if package.essential):
        packages.wait([name])
        with data_stream(packages.path(name)) as stream:
            run(
                ["tar", "-C", root, "--keep-directory-symlink", "--numeric-owner", "-xpf", "-"],
                stdin=stream,
                what=f"extracting {name}",
            )
    admin = root / "var/lib/dpkg"
    for directory in (admin / "info", admin / "updates", admin / "triggers"):
        directory.mkdir(parents=True, exist_ok=True)
    for file in (admin / "status", admin / "available"):
        file.touch()


def install(root: Path, packages: Supply, *, requested: Iterable[str], stand_ins: Path, monitor: Monitor) -> None:
    """Unpack and configure every package of the lock. `root` went through `bootstrap`; `stand_ins` is an empty
    directory for the programs that are laid over the root's.

    Raises CommandFailed with dpkg's last words, or VnfsError when what is installed in the end is not the lock.
    """
    lock = packages.lock
    policy = resolve_in(root, "/usr/sbin") / "policy-rc.d"
    atomic_write(policy, _POLICY, mode=0o755)
    try:
        with monitor.step("unpack", total=len(lock.packages), unit="packages") as step:
            _essential(root, packages, stand_ins, step)
            _rest(root, packages, stand_ins, step)
        with monitor.step("configure", total=len(lock.packages), unit="packages") as step, _empty_host_keys(root):
            _dpkg(root, packages, ["--configure", "--pending"], stand_ins, step, counted="Setting up ")
        _mark_automatic(root, {item.name for item in lock.packages} - set(requested))
    finally:
        policy.unlink(missing_ok=True)
    _check(root, lock)


@resource
def _empty_host_keys(root: Path) -> Iterator[None]:
    """While the context lasts there are host keys, empty ones."""
    made = []
    for path in map(Path, _HOST_KEYS):
        key = resolve_in(root, str(path.parent)) / path.name
        if key.parent.is_dir() and not os.path.lexists(key):
            key.touch(mode=0o600)
            made.append(key)
    try:
        yield
    finally:
        for key in made:
            with suppress(FileNotFoundError):
                if key.lstat().st_size == 0:
                    key.unlink()


def _essential(root: Path, packages: Supply, stand_ins: Path, step: Step) -> None:
    """Give what was extracted to dpkg. Its members depend on each other in circles, hence --force-depends here, and
    only here. Nothing can be laid over programs that are just being unpacked."""
    names = [package.name for package in packages.lock.packages if package.essential]
    first = [name for name in _FIRST if name in names]
    rest = [name for name in names if name not in first]
    for some in ([name] for name in first):
        _dpkg(root, packages, ["--force-depends", "--install", *_files(some)], None, step)
    if rest:
        _dpkg(root, packages, ["--force-depends", "--unpack", *_files(rest)], None, step)
    packages.drop(names)
    _dpkg(root, packages, ["--configure", "--pending"], stand_ins, step, counted="")


def _rest(root: Path, packages: Supply, stand_ins: Path, step: Step) -> None:
    """Unpack the others, each only when what it pre-depends on is configured, as policy demands."""
    relations = packages.relations()
    configured = {package.name for package in packages.lock.packages if package.essential}
    unpacked: set[str] = set()
    waiting = [package for package in packages.lock.packages if not package.essential]
    while waiting:
        now = [item for item in waiting if relations.met(relations.pre_depends[item.name], configured)]
        for names in batches(relations.ordered(now), _BATCHES):
            packages.wait(names)
            _dpkg(root, packages, ["--unpack", *_files(names)], stand_ins, step)
            packages.drop(names)
            unpacked |= set(names)
        waiting = [item for item in waiting if item.name not in unpacked]
        wanted = {name for item in waiting for name in relations.targets(relations.pre_depends[item.name])} - configured
        ready = relations.complete(wanted, unpacked, configured)
        if waiting and not ready:
            circle = ", ".join(sorted(item.name for item in waiting))
            raise VnfsError(f"these packages pre-depend on each other: {circle}")
        if ready:
            _dpkg(root, packages, ["--configure", *sorted(ready)], stand_ins, step, counted="")
        configured |= ready


def _files(names: Iterable[str]) -> list[str]:
    return [f"{_INSIDE}/{name}.deb" for name in names]


def _dpkg(
    root: Path,
    packages: Supply,
    words: Sequence[str],
    stand_ins: Path | None,
    step: Step,
    *,
    counted: str = "Unpacking ",
) -> None:
    """Run dpkg inside the root. Lines that begin with `counted` advance the step."""

    faults: list[str] = []

    def heard(line: str) -> None:
        if counted and line.startswith(counted):
            step.advance()
        elif line.startswith(("dpkg: error", "dpkg: dependency problems", "E: ")) or (faults and line.startswith(" ")):
            faults.append(line)

    binds = [Bind(packages.directory, _INSIDE, read_only=True)]
    if stand_ins:
        binds += _laid_over(root, stand_ins)
    verb = next(word for word in words if word in {"--install", "--unpack", "--configure"})
    try:
        run_in(root, [*_DPKG, *words], binds=binds, on_line=heard, what=f"dpkg {verb}")
    except CommandFailed as error:
        # dpkg goes on after a failure: what it says of the package at fault may stand far above its last lines.
        tail = "\n".join([*faults[:20], "...", error.tail]) if faults else error.tail
        raise CommandFailed(error.argv, error.returncode, tail, what=f"dpkg {verb}", hint=error.hint) from error


def _laid_over(root: Path, stand_ins: Path) -> list[Bind]:
    program = stand_ins / "nothing"
    if not program.exists():
        program.write_text(_STAND_IN)
        program.chmod(0o755)
    return [Bind(program, f"/{path}", read_only=True) for path in _STAND_INS if resolve_in(root, path).is_file()]


def _mark_automatic(root: Path, names: set[str]) -> None:
    """Tell apt which packages came as dependencies only, so that autoremove means something on the capsule."""
    if names and (root / "usr/bin/apt-mark").exists():
        run_in(root, ["apt-mark", "-q", "auto", *sorted(names)], what="apt-mark")


def _check(root: Path, lock: Lock) -> None:
    wanted, got = {item.package for item in lock.packages}, set(inventory(root))
    if wanted != got:
        odd = ", ".join(f"{item.name} {item.version}" for item in sorted(wanted ^ got)[:10])
        raise VnfsError(f"what dpkg installed is not what the lock says: {odd}")
    audit = run_in(root, ["dpkg", "--audit"]).text.strip()
    if audit:
        raise VnfsError(f"dpkg --audit finds fault with the new root:\n{audit}")


def write_sources(root: Path, lock: Lock, keyrings: Sequence[str]) -> None:
    """Tell the root's apt where its packages came from. `keyrings` are the distribution's; those that the root has
    vouch for its repositories."""
    place = resolve_in(root, "/etc/apt/sources.list.d")
    if not place.is_dir():
        return
    keys = " ".join(path for path in keyrings if resolve_in(root, path).is_file())
    stanzas = []
    for repo in lock.repositories:
        lines = ["Types: deb", f"URIs: {repo.uri}", f"Suites: {repo.suite}", f"Components: {' '.join(repo.components)}"]
        stanzas.append("\n".join([*lines, *([f"Signed-By: {keys}"] if keys else [])]) + "\n")
    atomic_write(place / "vnfs.sources", "\n".join(stanzas).encode())
