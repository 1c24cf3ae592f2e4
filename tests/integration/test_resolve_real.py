"""The support for bootstrap tests: a tiny signed repository with the real base of the distribution in it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.aptrepo import Deb, HttpServer, Repository, real_debs
from vnfsbuild import family, progress
from vnfsbuild.fetch import Downloader
from vnfsbuild.recipe import Distro, Recipe

pytestmark = pytest.mark.network


def test_a_tiny_repository_of_real_and_made_packages_resolves(
    tmp_path: Path, apt_repository: Repository, http: HttpServer
) -> None:
    made = Deb("hello-vnfs", depends="bash", files={"usr/bin/hello-vnfs": (0o755, b"#!/bin/bash\necho hello\n")})
    apt_repository.write_distribution("debian", "bookworm", [*real_debs(tmp_path / "real"), made])
    recipe = Recipe(
        path=tmp_path / "tiny.toml",
        name="tiny",
        distro=Distro("debian", "bookworm", "amd64", mirror=http.url, keyring=str(apt_repository.signer.keyring)),
        packages=("usr-is-merged", "hello-vnfs"),
    )
    downloader = Downloader(tmp_path / "cache")
    lock = family.get("debian").resolve(recipe, fetcher=downloader, mirrors={}, monitor=progress.Silent())
    names = {item.name for item in lock.packages}
    assert {"hello-vnfs", "bash", "dpkg", "coreutils", "libc6", "base-passwd"} <= names
    ready: list[Path] = []
    items = [(item.url, item.blob) for item in lock.packages]
    downloader.many(items, done=lambda _blob, path: ready.append(path), advance=lambda _: None)
    for path in ready:
        subprocess.run(["dpkg-deb", "--info", path], check=True, stdout=subprocess.DEVNULL)


def test_resolving_and_fetching_stay_small_in_memory(tmp_path: Path) -> None:
    # Not ru_maxrss: a child inherits that of the process it was forked from.
    program = f"""
from pathlib import Path
from vnfsbuild import config, family, progress
from vnfsbuild.fetch import Downloader
from vnfsbuild.recipe import load
recipes = config.data_directory("recipes")
downloader = Downloader(Path("{tmp_path / "cache"}"))
recipe = load(recipes / "debian-12-compute.toml", search=[recipes])
lock = family.get("debian").resolve(
    recipe, fetcher=downloader, mirrors=config.load().mirrors, monitor=progress.Silent()
)
items = [(item.url, item.blob) for item in lock.packages]
downloader.many(items, done=lambda *_: None, advance=lambda _: None)
status = Path("/proc/self/status").read_text()
print(status.partition("VmHWM:")[2].split()[0])
"""
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True)
    assert int(done.stdout) < 200 * 1024
