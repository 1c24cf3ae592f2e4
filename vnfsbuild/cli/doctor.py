"""`vnfs doctor`: what this host lacks for which feature, and the one command that installs it."""

from __future__ import annotations

from collections.abc import Mapping

from vnfsbuild.cli.common import ANSWERED_NO, App, command, table

# Feature to the programs it runs.
FEATURES: Mapping[str, tuple[str, ...]] = {
    "lock": ("gpgv",),
    "build": ("unshare", "mount", "tar", "dpkg-deb", "mksquashfs"),
    "mount, umount, shell": ("unshare", "mount", "umount", "mksquashfs", "unsquashfs"),
    "diff": ("unsquashfs",),
    "livesync, status": ("ssh", "rsync"),
    "boot": ("qemu-system-x86_64",),
}
MODULES: Mapping[str, str] = {"serve, boot": "aiohttp", "livesync of node ranges": "ClusterShell", "bars": "rich"}


@command("doctor", example="vnfs doctor")
def doctor_command(app: App) -> int:
    """Say what this host lacks. Exit 3 when something is missing."""
    import importlib.util
    import os

    from vnfsbuild.errors import ProgramMissing
    from vnfsbuild.host.run import PACKAGES, which

    rows: list[tuple[str, str, str]] = []
    missing: set[str] = set()
    for feature, programs in FEATURES.items():
        for program in programs:
            try:
                rows.append((feature, program, which(program)))
            except ProgramMissing:
                rows.append((feature, program, "missing"))
                missing.add(PACKAGES.get(program, program))
    absent = {name for name in MODULES.values() if importlib.util.find_spec(name) is None}
    rows += [(feature, name, "missing" if name in absent else "there") for feature, name in MODULES.items()]
    if os.geteuid() != 0:
        rows.append(("build, mount, umount", "root", "missing"))
    commands = [f"apt-get install {' '.join(sorted(missing))}"] if missing else []
    commands += ["pip install 'vnfs[all]'"] if absent else []
    data = {"checks": [{"feature": f, "needs": n, "found": w} for f, n, w in rows], "install": commands}
    app.emit(data, "\n".join([table(rows, head=("FEATURE", "NEEDS", "FOUND")), *(f"\n{line}" for line in commands)]))
    return ANSWERED_NO if commands else 0
