"""How long mount, a one-file umount and --help take, as whole processes, on a capsule of 20,000 paths. Needs root."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path

from tests.support.program import VNFS
from tests.support.trees import publish, small_tree
from vnfsbuild.store.capsules import Store

ROUNDS = 5


def _seconds(*words: str) -> float:
    start = time.perf_counter()
    subprocess.run([*VNFS, *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Print the best of some rounds, each against its target."""
    with tempfile.TemporaryDirectory(prefix="vnfs-bench-") as name:
        base = Path(name)
        tree = small_tree(base / "tree")
        for directory in range(200):
            (tree / f"usr/share/{directory}").mkdir(parents=True)
            for file in range(100):
                (tree / f"usr/share/{directory}/{file}-a-name-of-usual-length.txt").write_text(f"{directory} {file}")
        os.environ |= {f"VNFS_{word.upper()}": str(base / word) for word in ("store", "work", "cache")}
        publish(Store(base / "store"), tree, "big")
        times: dict[str, list[float]] = {"mount": [], "umount": [], "--help": []}
        for number in range(ROUNDS):
            times["--help"].append(_seconds("--help"))
            times["mount"].append(_seconds("mount", "big:1", "--at", str(base / "at")))
            (base / "at/etc/motd").write_text(f"round {number}\n")
            times["umount"].append(_seconds("umount", "big"))
        for what, target in (("--help", 0.1), ("mount", 0.1), ("umount", 1.0)):
            print(f"{what:8} {min(times[what]):6.3f} s   target {target} s")


if __name__ == "__main__":
    main()
