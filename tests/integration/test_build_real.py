"""Real archives: another release of Debian is a row of data and a base recipe."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.program import VNFS

pytestmark = [pytest.mark.root, pytest.mark.network]

RECIPES = Path(__file__).parents[2] / "recipes"


def test_debian_13_builds_by_a_row_and_a_base_recipe_alone(tmp_path: Path) -> None:
    env = os.environ | {f"VNFS_{name.upper()}": str(tmp_path / name) for name in ("store", "cache", "work")}
    recipe = tmp_path / "thirteen.toml"
    recipe.write_text(f'extends = ["{RECIPES / "base/debian-13.toml"}"]\n')
    argv = [*VNFS, "build", recipe, "--json"]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    image = tmp_path / "store/blobs/sha256" / report["layers"][0]["digest"].removeprefix("sha256:")
    tree = tmp_path / "tree"
    subprocess.run(["unsquashfs", "-q", "-n", "-d", tree, image], check=True, capture_output=True)
    assert (tree / "etc/debian_version").read_text().startswith("13")
    assert (tree / "bin").readlink() == Path("usr/bin")
    assert (tree / f"boot/vmlinuz-{report['kernel']}").is_file()
    audit = ["chroot", tree, "dpkg", "--audit"]
    assert subprocess.run(audit, capture_output=True, check=True).stdout == b""
    verify = ["chroot", tree, "dpkg", "--verify"]
    assert subprocess.run(verify, capture_output=True, text=True, check=False).stdout == "", "every file as packaged"
