"""Roots that strangers made: what vnfs does beside them, as root of the host, must not be led out of them by a link."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vnfsbuild.errors import CommandFailed, HostError, TrustError
from vnfsbuild.family.deb import shell
from vnfsbuild.family.deb.scrub import scrub
from vnfsbuild.format.squashfs import pack_tree, read_files
from vnfsbuild.host.fs import resolve_in
from vnfsbuild.host.sandbox import Bind, run_in
from vnfsbuild.hybrid.policy import Profile, hybridize

pytestmark = pytest.mark.root


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory of the host with something in it that must stay as it is."""
    place = tmp_path / "outside"
    (place / "etc").mkdir(parents=True)
    for path in ("machine-id", "resolv.conf", "hosts", "etc/machine-id", "policy-rc.d"):
        (place / path).write_text("precious\n")
    return place


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The smallest root in which a program runs: a static shell."""
    place = tmp_path / "root"
    for name in ("bin", "etc", "usr/sbin", "var/lib/apt/lists", "var/cache/apt", "tmp"):
        (place / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", place / "bin/busybox")
    for name in ("sh", "cat", "ls", "mount"):
        (place / "bin" / name).symlink_to("busybox")
    return place


def _state(place: Path) -> dict[str, tuple[bytes, int]]:
    files = sorted(path for path in place.rglob("*") if path.is_file())
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def _replace_by_link(path: Path, target: str | Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


@pytest.mark.parametrize("name", ["proc", "sys", "dev", "run"])
@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "climbing"])
def test_a_link_where_the_sandbox_mounts_is_refused(name: str, relative: bool, root: Path, outside: Path) -> None:
    _replace_by_link(root / name, "../outside" if relative else outside)
    before = _state(outside)
    with pytest.raises(TrustError, match=f"/{name} in .* is not a directory"):
        run_in(root, ["true"], network=True)
    assert _state(outside) == before
    assert {path.name for path in outside.iterdir()} == {"etc", "hosts", "machine-id", "policy-rc.d", "resolv.conf"}


@pytest.mark.parametrize(
    "target", ["/run/../../outside/resolv.conf", "../run/../../../outside/resolv.conf", "../../outside/resolv.conf"]
)
def test_a_resolver_link_that_climbs_stays_inside(target: str, root: Path, outside: Path) -> None:
    _replace_by_link(root / "etc/resolv.conf", target)
    before = _state(outside)
    run_in(root, ["true"], network=True)
    assert _state(outside) == before


@pytest.mark.parametrize("name", ["resolv.conf", "hosts"])
def test_a_link_to_a_file_of_the_host_is_not_followed(name: str, root: Path, outside: Path) -> None:
    _replace_by_link(root / "etc" / name, outside / name)
    before = _state(outside)
    assert run_in(root, ["cat", f"/etc/{name}"], network=True, check=False).returncode != 0
    assert _state(outside) == before


def test_the_resolver_is_shown_through_links_within_the_root(root: Path) -> None:
    said = Path("/etc/resolv.conf").read_bytes()
    for target in ("/run/systemd/resolve/stub-resolv.conf", "../run/resolvconf/resolv.conf", "real.conf"):
        _replace_by_link(root / "etc/resolv.conf", target)
        (root / "etc/real.conf").write_text("own\n")
        assert run_in(root, ["cat", "/etc/resolv.conf"], network=True).output == said
    assert (root / "etc/real.conf").read_text() == "own\n"


def test_the_resolver_is_not_written_into_what_a_bind_shows(root: Path, outside: Path, tmp_path: Path) -> None:
    shown = tmp_path / "shown"
    shown.mkdir()
    (shown / "conf").write_text("precious\n")
    (shown / "link").symlink_to(outside / "etc/machine-id")
    before = _state(outside) | _state(shown)
    for name in ("conf", "link"):
        _replace_by_link(root / "etc/resolv.conf", f"/run/shown/{name}")
        run_in(root, ["true"], network=True, binds=[Bind(shown, "/run/shown")])
    assert _state(outside) | _state(shown) == before


@pytest.mark.parametrize("target", ["/run/.vnfs-dev/fd/1", "/run/.vnfs-dev", "/run/.vnfs-mounts/x", "/run/lock/x"])
def test_a_link_to_what_the_sandbox_is_made_of_is_refused(target: str, root: Path) -> None:
    _replace_by_link(root / "etc/resolv.conf", target)
    with pytest.raises(CommandFailed):
        run_in(root, ["true"], network=True)
    _replace_by_link(root / "var/lib/apt/lists", "/run/.vnfs-dev/pts")
    with pytest.raises(TrustError, match="leads to /run/"):
        run_in(root, ["true"], binds=[Bind(root / "etc", "/var/lib/apt/lists")])


def test_a_root_that_was_prepared_for_chroot_is_a_sandbox_all_the_same(root: Path) -> None:
    """mount -a passes over what is mounted already: the host's /proc, a writable /sys, a /dev without terminals."""
    for name in ("proc", "sys", "dev"):
        (root / name).mkdir()
    prepare = (
        'set -e; mount --bind /proc "$0/proc"; mount --bind /sys "$0/sys"; mount --rbind /dev "$0/dev"\n'
        'mount --bind /dev/null "$0/dev/null"; exec "$@"'
    )
    look = (
        "import sys\nfrom pathlib import Path\nfrom vnfsbuild.host.sandbox import run_in\n"
        "script = 'ls -d /proc/[0-9]* && cat /proc/self/mounts && ls -l /dev/ptmx /dev/null /dev/pts/ptmx'\n"
        "print(run_in(Path(sys.argv[1]), ['sh', '-c', script]).text)"
    )
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", prepare, root, sys.executable, "-c", look]
    said = subprocess.run([*argv, root], capture_output=True, text=True, check=True).stdout.splitlines()
    assert sum(line.startswith("/proc/") for line in said) < 5, "the host's processes are not seen"
    mounts = {line.split()[1]: line.split()[3].split(",") for line in said if " 0 0" in line}
    assert {"nosuid", "nodev", "noexec"} <= set(mounts["/proc"])
    assert "ro" in mounts["/sys"]
    assert {"/dev/pts", "/dev/shm", "/dev/null"} <= set(mounts)
    kinds = {word: line[0] for line in said for word in line.split()[-1:] if line[1:3] in {"rw", "r-"}}
    assert (kinds["/dev/null"], kinds["/dev/pts/ptmx"]) == ("c", "c")


def test_a_bind_lands_where_the_root_means_it(root: Path, outside: Path, tmp_path: Path) -> None:
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "list").touch()
    (root / "srv/lists").mkdir(parents=True)
    _replace_by_link(root / "var/lib/apt/lists", "/srv/lists")
    assert run_in(root, ["ls", "/srv/lists"], binds=[Bind(lists, "/var/lib/apt/lists")]).text == "list\n"
    _replace_by_link(root / "var/lib/apt/lists", outside)
    assert shell.binds(root, tmp_path / "cache") == (Bind(tmp_path / "cache/cache", "/var/cache/apt"),)
    _replace_by_link(root / "var/lib/apt/lists", "/dev")
    with pytest.raises(TrustError, match="leads to /dev"):
        run_in(root, ["true"], binds=[Bind(lists, "/var/lib/apt/lists")])


def test_nothing_is_laid_into_the_host_through_a_linked_directory(root: Path, outside: Path) -> None:
    _replace_by_link(root / "usr/sbin", outside)
    _replace_by_link(root / "etc", outside)
    (outside / "policy-rc.d").unlink()
    (outside / "resolv.conf").unlink()
    before = _state(outside)
    with shell.no_daemons(root), shell.resolver(root):
        assert _state(outside) == before
    assert _state(outside) == before


def test_hybridize_and_scrub_leave_the_host_alone(root: Path, outside: Path, tmp_path: Path) -> None:
    _replace_by_link(root / "etc", outside)
    _replace_by_link(root / "var/cache/apt", outside)
    (root / outside.relative_to("/")).mkdir(parents=True)
    before = _state(outside)
    hybridize(root, Profile("none", tmp_path / "no files", (), ()))
    scrub(root)
    assert _state(outside) == before


def test_an_image_with_a_link_for_a_directory_does_not_show_files_of_the_host(outside: Path, tmp_path: Path) -> None:
    tree, image = tmp_path / "tree", tmp_path / "image"
    tree.mkdir()
    (tree / "etc").symlink_to(outside)
    pack_tree(tree, image, epoch=0)
    assert read_files(image, ["/etc/hosts", "/etc"], scratch=tmp_path) == {}


def test_links_are_followed_as_inside_the_root(root: Path) -> None:
    (root / "a").symlink_to("/usr/../b")
    (root / "b").symlink_to("../../../usr/sbin")
    assert resolve_in(root, "/a/x/../y") == root / "usr/sbin/y"
    assert resolve_in(root, "../..") == root
    (root / "loop").symlink_to("loop")
    with pytest.raises(HostError, match="too many symbolic links"):
        resolve_in(root, "loop/x")
