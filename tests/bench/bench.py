"""Figures: ours beside mmdebstrap and mksquashfs, in one run, on the same machine, from the same mirror.

Nothing here passes or fails; it prints medians and ratios, and the targets beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT))

from vnfsbuild import lockfile  # noqa: E402

VNFS = str(Path(sys.executable).with_name("vnfs"))
RECIPE = CHECKOUT / "recipes" / "debian-12-compute.toml"


def main() -> None:
    """Run the comparison and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=1, help="runs of the long comparison (default 1)")
    runs = parser.parse_args().n
    with tempfile.TemporaryDirectory(prefix="vnfs-bench-", dir="/var/tmp") as scratch:
        bench(Path(scratch), runs)


def bench(scratch: Path, runs: int) -> None:
    env = os.environ | {f"VNFS_{key.upper()}": str(scratch / key) for key in ("store", "cache", "work")}
    # An installed vnfs is compiled. A checkout is too, by the first run, unless that is forbidden.
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    recipe = scratch / "compute.toml"
    recipe.write_text(f'name = "compute"\nextends = ["{RECIPE}"]\n')
    subprocess.run([VNFS, "lock", str(recipe), "--progress", "none"], env=env, check=True)
    held = lockfile.read(recipe.with_suffix(".lock"))
    assert held
    ours, theirs, helped, memory, steps = [], [], [], [], ""
    for number in range(runs):
        shutil.rmtree(scratch / "cache", ignore_errors=True)
        shutil.rmtree(scratch / "store", ignore_errors=True)
        recipe.with_suffix(".lock").unlink()
        seconds, peak, steps = watched([VNFS, "build", str(recipe), "--progress", "plain"], env)
        ours.append(seconds)
        memory.append(peak)
        print(f"run {number + 1}: vnfs build {seconds:.1f} s, of which\n{steps}", flush=True)
        theirs.append(reference(held, scratch))
        print(f"run {number + 1}: mmdebstrap + mksquashfs {theirs[-1]:.1f} s", flush=True)
        with in_memory(scratch / "memory") as place:
            helped.append(reference(held, place))
        print(f"run {number + 1}: the same, in a memory file system {helped[-1]:.1f} s", flush=True)
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    hard = statistics.median(a / b for a, b in zip(ours, helped, strict=True))
    at = scratch / "mnt"
    mounts, umounts = [], []
    for number in range(5):
        mounts.append(timed([VNFS, "mount", "compute", "--at", str(at)], env))
        (at / "etc/motd").write_text(f"edit {number}\n")
        umounts.append(timed([VNFS, "umount", "compute", "-m", "one file", "--progress", "none"], env))
    helps = [timed([VNFS, "--help"], env) for _ in range(9)]
    size = json.loads(
        subprocess.run([VNFS, "show", "compute:1", "--json"], env=env, check=True, capture_output=True).stdout
    )
    rows = [
        ("build, empty cache", f"{statistics.median(ours):.1f} s", ""),
        ("mmdebstrap + mksquashfs zstd-3", f"{statistics.median(theirs):.1f} s", ""),
        ("  ratio", f"{ratio:.2f}", "<= 0.40"),
        ("the same, in a memory file system", f"{statistics.median(helped):.1f} s", ""),
        ("  ratio", f"{hard:.2f}", ""),
        ("mount", f"{statistics.median(mounts):.3f} s", "<= 0.1 s"),
        ("umount after a one-file edit", f"{statistics.median(umounts):.2f} s", "<= 1 s"),
        ("vnfs --help", f"{statistics.median(helps):.3f} s", "<= 0.1 s"),
        ("peak memory of vnfs build itself", f"{max(memory) / 1e6:.0f} MB", "<= 400 MB"),
        ("capsule", f"{size['size'] / 1e6:.0f} MB, {len(held.packages)} packages", ""),
    ]
    print("\n" + "\n".join(f"{what:<36} {value:>24}   {target}" for what, value, target in rows))


def timed(argv: Sequence[str], env: dict[str, str]) -> float:
    began = time.monotonic()
    subprocess.run(argv, env=env, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def watched(argv: Sequence[str], env: dict[str, str]) -> tuple[float, int, str]:
    """Seconds, the process's own peak resident bytes (children apart), and what it said on the way."""
    began, peak = time.monotonic(), 0
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(argv, env=env, stdout=said, stderr=said)
        while process.poll() is None:
            peak = max(peak, high_water(process.pid))
            time.sleep(0.05)
        seconds = time.monotonic() - began
        said.seek(0)
        text = said.read()
    if process.returncode:
        sys.exit(text)
    return seconds, peak, "\n".join("  " + line for line in text.splitlines() if "done in" in line)


def high_water(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def reference(held: lockfile.Lock, place: Path) -> float:
    """mmdebstrap of exactly the same packages into `place`, then mksquashfs zstd-3 of the tree; seconds of both."""
    sources = [f"deb {repo.uri} {repo.suite} {' '.join(repo.components)}" for repo in held.repositories]
    names = ",".join(package.name for package in held.packages)
    root, image = place / "reference", place / "reference.squashfs"
    began = time.monotonic()
    quiet(["mmdebstrap", "--quiet", "--mode=root", "--variant=required", f"--include={names}", held.suite, str(root),
           *sources])  # fmt: skip
    quiet(["mksquashfs", str(root), str(image), "-comp", "zstd", "-Xcompression-level", "3", "-noappend",
           "-no-progress", "-quiet"])  # fmt: skip
    seconds = time.monotonic() - began
    shutil.rmtree(root)
    image.unlink()
    return seconds


def quiet(argv: Sequence[str]) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{argv[0]} failed:\n{done.stdout}{done.stderr}")


@contextmanager
def in_memory(place: Path) -> Iterator[Path]:
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6g,mode=755", "bench", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)
        place.rmdir()


if __name__ == "__main__":
    main()
