"""A recipe becomes a lock only from indexes that are signed, current and whole: real gpgv, real .deb files."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.aptrepo import Deb, HttpServer, Repository, Signer, signer
from vnfsbuild import family, progress
from vnfsbuild.errors import HostError, NetworkError, ResolveError, TrustError
from vnfsbuild.fetch import Downloader
from vnfsbuild.lockfile import Lock, dump, parse
from vnfsbuild.recipe import load

PACKAGES = [
    Deb("base-files", "12", essential=True, depends="dpkg"),
    Deb("dpkg", "1.21", priority="required"),
    Deb("hello", "2.10", depends="libhello (>= 2)", files={"usr/bin/hello": (0o755, b"#!/bin/sh\necho hello\n")}),
    Deb("libhello", "2.1"),
    Deb("busybox-static", "1.35"),
]


class Site:
    """A recipe, a cache and a mirror."""

    def __init__(self, where: Path, repository: Repository, server: HttpServer) -> None:
        self.where = where
        self.repository = repository
        self.server = server
        self.keyring = repository.signer.keyring
        self.extra = ""
        self.include = ["hello"]
        self.distro = ""

    def resolve(self) -> Lock:
        path = self.where / "recipe.toml"
        include = ", ".join(f'"{word}"' for word in self.include)
        path.write_text(
            f'[distro]\nid = "debian"\nsuite = "bookworm"\nmirror = "{self.server.url}"\n'
            f'keyring = "{self.keyring}"\n{self.distro}\n'
            f"[packages]\ninclude = [{include}]\n{self.extra}"
        )
        recipe = load(path)
        downloader = Downloader(self.where / "cache", attempts=2, timeout=5)
        return family.get("debian").resolve(recipe, fetcher=downloader, mirrors={}, monitor=progress.Silent())


@pytest.fixture
def site(tmp_path: Path, apt_repository: Repository, http: HttpServer) -> Site:
    apt_repository.write_distribution("debian", "bookworm", PACKAGES)
    return Site(tmp_path, apt_repository, http)


def test_a_lock_says_what_where_and_from_whom(site: Site) -> None:
    lock = site.resolve()
    assert [item.name for item in lock.packages] == ["base-files", "dpkg", "hello", "libhello"]
    assert [item.name for item in lock.packages if item.essential] == ["base-files", "dpkg"]
    assert [item.name for item in lock.tools] == ["busybox-static"]
    assert [repo.suite for repo in lock.repositories] == ["bookworm", "bookworm-updates", "bookworm-security"]
    assert {repo.signed_by for repo in lock.repositories} == {site.repository.signer.fingerprint}
    assert parse(dump(lock)) == lock
    assert site.resolve() == lock


def test_what_a_lock_names_can_be_fetched_and_is_a_package(site: Site) -> None:
    item = next(item for item in site.resolve().packages if item.name == "hello")
    path = Downloader(site.where / "cache").file(item.url, blob=item.blob)
    assert path.read_bytes() == PACKAGES[2].build()


def test_indexes_are_fetched_once_and_by_hash(site: Site) -> None:
    site.resolve()
    site.server.requests.clear()
    site.resolve()
    assert [path.rpartition("/")[2] for path, _ in site.server.requests] == ["InRelease"] * 3


def test_an_armored_keyring_will_do(site: Site) -> None:
    site.keyring = site.repository.signer.armored
    assert site.resolve().packages


@pytest.mark.parametrize(
    "options",
    [{"by_hash": False}, {"compress": (".gz",)}, {"compress": ("",)}, {"compress": (".xz",)}, {"valid": None}],
    ids=["no by-hash", "only gz", "only plain", "only xz", "never expires"],
)
def test_repositories_of_other_habits(site: Site, options: dict[str, object]) -> None:
    site.repository.write_distribution("debian", "bookworm", PACKAGES, **options)
    assert len(site.resolve().packages) == 4


def test_a_mirror_that_promises_by_hash_and_has_it_not(site: Site) -> None:
    for path in (site.repository.root / "dists").rglob("by-hash/SHA256/*"):
        path.unlink()
    assert len(site.resolve().packages) == 4


def expire(repository: Repository) -> None:
    repository.write("bookworm-security", [], valid=timedelta(days=-3))


def other_suite(repository: Repository) -> None:
    repository.inrelease("bookworm").write_bytes(repository.inrelease("bookworm-updates").read_bytes())


def second_message(repository: Repository) -> None:
    path = repository.inrelease("bookworm")
    path.write_bytes(path.read_bytes() + path.read_bytes())


def text_before(repository: Repository) -> None:
    path = repository.inrelease("bookworm")
    path.write_bytes(b"Suite: bookworm\n\n" + path.read_bytes())


def index_promise(repository: Repository) -> None:
    repository.edit_release("bookworm", b"main/binary-amd64/Packages.xz", b"main/binary-amd64/Packages.gz")


DAMAGE: dict[str, tuple[Callable[[Repository], None], str]] = {
    "not signed": (lambda repo: repo.unsign("bookworm"), "not one signed message"),
    "changed after signing": (index_promise, "not signed by a key"),
    "expired": (expire, r"bookworm-security/InRelease expired on .* UTC, 2 days|3 days ago"),
    "another suite's": (other_suite, "is the Release of bookworm-updates, and bookworm was asked for"),
    "two messages": (second_message, "not one signed message"),
    "text before the message": (text_before, "not one signed message"),
    "index with other bytes": (lambda repo: repo.damage_index("bookworm"), "is not what was promised"),
}


@pytest.mark.parametrize(("damage", "says"), DAMAGE.values(), ids=DAMAGE)
def test_what_cannot_be_trusted_is_refused(site: Site, damage: Callable[[Repository], None], says: str) -> None:
    damage(site.repository)
    with pytest.raises(TrustError, match=says) as caught:
        site.resolve()
    assert "/dists/bookworm" in caught.value.message
    assert caught.value.hint


def test_a_stranger_s_signature_is_refused(site: Site, tmp_path: Path) -> None:
    with signer(tmp_path / "stranger") as stranger:
        site.keyring = stranger.keyring
        with pytest.raises(TrustError, match="not signed by a key that may sign it"):
            site.resolve()


def test_a_key_of_the_keyring_that_the_table_does_not_name_may_not_sign(site: Site, archive_key: Signer) -> None:
    from vnfsbuild.family.openpgp import verify

    path = site.repository.inrelease("bookworm")
    assert verify(path, what="it", keyrings=[archive_key.keyring], signers=[archive_key.fingerprint]).signer
    with pytest.raises(TrustError):
        verify(path, what="it", keyrings=[archive_key.keyring], signers=["0" * 40])


def test_a_signature_over_a_broken_digest_is_refused(tmp_path: Path) -> None:
    from vnfsbuild.family.openpgp import verify

    with signer(tmp_path / "old", "rsa2048") as old:
        path = tmp_path / "InRelease"
        path.write_bytes(old.clearsign("Suite: bookworm\n", "--digest-algo", "SHA256"))
        assert verify(path, what="it", keyrings=[old.keyring]).content == b"Suite: bookworm\n"
        path.write_bytes(old.clearsign("Suite: bookworm\n", "--digest-algo", "SHA1"))
        with pytest.raises(TrustError, match="not signed by a key that may sign it"):
            verify(path, what="it", keyrings=[old.keyring])


def test_a_missing_keyring_is_a_matter_of_this_host(site: Site) -> None:
    site.keyring = site.where / "nowhere.gpg"
    with pytest.raises(HostError, match=r"nowhere\.gpg"):
        site.resolve()


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "pool/../../x", "pool/%2e%2e/x", "pool/a b"])
def test_a_file_name_that_leads_out_of_the_mirror_is_refused(name: str) -> None:
    from vnfsbuild.family.deb.repo import package_url

    with pytest.raises(TrustError):
        package_url("http://mirror", name)


def test_a_truncated_index_is_asked_for_again_and_then_named(site: Site) -> None:
    site.resolve()
    index = next(path for path, _ in site.server.requests if "by-hash" in path)
    site.server.cut[index] = [10]
    (cache := site.where / "cache").rename(site.where / "old")
    assert site.resolve().packages
    assert not list(cache.rglob("*.part"))
    site.server.cut[index] = 0
    cache.rename(site.where / "older")
    with pytest.raises(NetworkError, match="by-hash"):
        site.resolve()


def test_a_mirror_that_is_gone_is_named(site: Site) -> None:
    (site.repository.root / "dists/bookworm-security/InRelease").unlink()
    with pytest.raises(NetworkError, match="/dists/bookworm-security/InRelease: HTTP 404"):
        site.resolve()


def test_a_component_that_is_not_there_is_named(site: Site) -> None:
    site.distro = 'components = ["contrib"]'
    with pytest.raises(ResolveError, match="no component contrib for amd64"):
        site.resolve()


def test_another_repository_adds_packages_under_its_own_key(site: Site, tmp_path: Path) -> None:
    with signer(tmp_path / "vendor-key") as vendor:
        extra = Repository(tmp_path / "vendor", vendor)
        extra.write("stable", [Deb("vendor-tool", "3", depends="libhello"), Deb("hello", "9:1")])
        where = f'uri = "{extra.root.as_uri()}"\nsuite = "stable"\ncomponents = ["main"]\n'
        site.extra = f'[[repo]]\n{where}key = "{vendor.armored}"\n'
        site.include = ["vendor-tool", "hello"]
        lock = site.resolve()
        assert lock.repositories[-1].signed_by == vendor.fingerprint
        found = {item.name: item.version for item in lock.packages}
        assert (found["vendor-tool"], found["hello"]) == ("3", "9:1")
        site.include = ["hello=2.10"]
        assert {item.name: item.version for item in site.resolve().packages}["hello"] == "2.10"


def test_local_package_files_are_installed_with_what_they_need(site: Site) -> None:
    path = site.where / "own.deb"
    path.write_bytes(Deb("own", "1", depends="hello").build())
    site.include = []
    site.extra = f'local = ["{path}"]\n'
    lock = site.resolve()
    own = next(item for item in lock.packages if item.name == "own")
    assert own.url == path.as_uri()
    assert Downloader(site.where / "cache").file(own.url, blob=own.blob).read_bytes() == path.read_bytes()
    assert "libhello" in [item.name for item in lock.packages]
