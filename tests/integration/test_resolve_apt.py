"""Our solver gives the answer of apt-get: the real one, on an empty system, from the same signed indexes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.aptrepo import Apt, Deb, Repository, Signer, packages_text
from vnfsbuild import config, family, fetch, progress
from vnfsbuild.family.deb.index import Index
from vnfsbuild.family.deb.solve import solve
from vnfsbuild.family.deb.universe import Universe
from vnfsbuild.lockfile import Lock
from vnfsbuild.recipe import Recipe, load

RECIPES = config.data_directory("recipes")


# ---- generated repositories


def generated(seed: int) -> list[Deb]:
    """Forty packages in the ways of a distribution: chains, alternatives, virtual packages, versions, few conflicts."""
    dice = random.Random(seed)
    names = [f"p{number}" for number in range(40)]
    versions = {name: f"{dice.choice('123')}.{dice.randrange(3)}-1" for name in names}
    virtual = ["v0", "v1", "v2", "v3"]

    def relation() -> str:
        name = dice.choice([*names, *virtual])
        return name if dice.random() < 0.8 or name in virtual else f"{name} (>= {versions[name][0]})"

    def groups(most: int) -> str:
        return ", ".join(
            " | ".join(relation() for _ in range(dice.choice([1, 1, 1, 2, 3]))) for _ in range(dice.randrange(most))
        )

    return [
        Deb(
            name,
            versions[name],
            depends=groups(4),
            pre_depends=groups(2) if dice.random() < 0.2 else "",
            recommends=groups(3),
            provides=dice.choice(virtual) if dice.random() < 0.3 else "",
            conflicts=dice.choice(names[30:]) if dice.random() < 0.03 else "",
            essential=dice.random() < 0.05,
            priority=dice.choice(["optional", "optional", "optional", "important", "extra", "standard"]),
        )
        for name in names
    ]


def universe(where: Path, debs: Sequence[Deb], *, recommends: bool = False) -> Universe:
    (where / "Packages").write_text(packages_text(debs))
    return Universe([Index(where / "Packages", "http://mirror")], "amd64", recommends=recommends)


def test_generated_repositories(tmp_path: Path, archive_key: Signer) -> None:
    agreed = 0
    for seed in range(12):
        debs = generated(seed)
        repository = Repository(tmp_path / str(seed), archive_key)
        repository.write("stable", debs)
        line = f"deb [signed-by={archive_key.keyring}] {repository.root.as_uri()} stable main"
        apt = Apt(tmp_path / f"apt-{seed}", [line])
        ours = universe(repository.root, debs)
        base = list(ours.base())
        dice = random.Random(-seed - 1)
        for _ in range(8):
            asked = dice.sample([deb.name for deb in debs], 3)
            names = [*(name for name in base if name not in asked), *asked]
            if not apt.straight(names):
                continue  # apt guesses on, or gives up, where ours searches: that it does so rightly is a unit test
            answer = {(item.name, item.version) for item in solve(ours, asked)}
            assert answer == apt.install(names), (seed, asked)
            agreed += 1
    assert agreed > 30


# ---- the real distribution


def sources(lock: Lock) -> list[str]:
    key = "/usr/share/keyrings/debian-archive-keyring.gpg"
    return [f"deb [signed-by={key}] {repo.uri} {repo.suite} {' '.join(repo.components)}" for repo in lock.repositories]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def resolve(recipe: Recipe, cache: Path) -> Lock:
    downloader = fetch.Downloader(cache)
    return family.get(recipe.distro.id).resolve(
        recipe, fetcher=downloader, mirrors=config.load().mirrors, monitor=progress.Silent()
    )


def base_of(lock: Lock, cache: Path) -> list[str]:
    """Essential and required packages, read from the indexes by the plainest of means."""
    found: set[str] = set()
    digests = {repo.release for repo in lock.repositories}
    assert all((cache / "blobs/sha256" / digest.removeprefix("sha256:")).is_file() for digest in digests)
    chosen = {item.name: item.version for item in lock.packages}
    for path in (cache / "blobs/sha256").iterdir():
        with open(path, "rb") as stream:
            if stream.read(9) != b"Package: ":
                continue
        for text in path.read_text().split("\n\n"):
            lines = text.splitlines()
            if "Essential: yes" in lines or "Priority: required" in lines:
                fields = dict(line.split(": ", 1) for line in lines if ": " in line and line[0] != " ")
                if chosen.get(fields["Package"]) == fields["Version"]:
                    found.add(fields["Package"])
    return sorted(found)


@pytest.mark.network
@pytest.mark.parametrize(
    "name", ["debian-12-compute.toml", "base/debian-12.toml", "base/debian-13.toml"], ids=lambda name: Path(name).stem
)
def test_recipes_resolve_to_what_apt_installs(name: str, cache: Path, tmp_path: Path) -> None:
    recipe = load(RECIPES / name, search=[RECIPES])
    lock = resolve(recipe, cache)
    apt = Apt(tmp_path / "apt", sources(lock))
    theirs = apt.install([*(item for item in base_of(lock, cache) if item not in recipe.packages), *recipe.packages])
    assert {(item.name, item.version) for item in lock.packages} == theirs
    assert {item.name for item in lock.tools} == {"busybox-static"}
    assert {"dpkg", "libc6", "base-files"} <= {item.name for item in lock.packages if item.essential}


LISTS = [
    (False, ["default-jdk-headless", "postgresql", "apache2", "php"]),
    (False, ["build-essential", "git", "texlive-base", "emacs-nox", "cloud-init"]),
    (True, ["openssh-server", "nfs-kernel-server", "slurmctld", "ganglia-monitor"]),
    (True, ["gnome-core", "exim4", "cups"]),
]


@pytest.mark.network
@pytest.mark.parametrize(
    ("recommends", "packages"), LISTS, ids=lambda item: item[0] if isinstance(item, list) else item
)
def test_other_lists_resolve_to_what_apt_installs(
    recommends: bool, packages: list[str], cache: Path, tmp_path: Path
) -> None:
    path = tmp_path / "list.toml"
    words = ", ".join(f'"{word}"' for word in packages)
    path.write_text(
        f'extends = ["base/debian-12.toml"]\n[packages]\ninclude = [{words}]\nrecommends = {str(recommends).lower()}\n'
    )
    recipe = load(path, search=[RECIPES])
    lock = resolve(recipe, cache)
    apt = Apt(tmp_path / "apt", sources(lock))
    names = [*(item for item in base_of(lock, cache) if item not in recipe.packages), *recipe.packages]
    theirs = apt.install(names, recommends=recommends)
    assert {(item.name, item.version) for item in lock.packages} == theirs
