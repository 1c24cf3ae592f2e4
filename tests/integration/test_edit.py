"""Editing a capsule: mount, change, umount, close; what goes wrong leaves everything as it was."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.program import VNFS
from tests.support.trees import CAPABILITY, publish, small_tree, status
from vnfsbuild.deliver.edit import mounts
from vnfsbuild.deliver.edit.publish import Outcome, umount
from vnfsbuild.errors import Busy, Conflict, NoSpace, NotFound
from vnfsbuild.format.squashfs import compressor_of
from vnfsbuild.host.mount import layers, mountpoints, tmpfs
from vnfsbuild.model import Package
from vnfsbuild.progress import Silent
from vnfsbuild.store import sbom
from vnfsbuild.store.capsules import Store
from vnfsbuild.store.toc import Entry, FileType, scan

pytestmark = pytest.mark.root


@dataclass(frozen=True)
class Site:
    base: Path
    store: Store
    work: Path
    at: Path

    def mount(self, reference: str = "tiny") -> Path:
        return mounts.mount(self.store, self.work, reference, self.at).at

    def umount(self, message: str = "") -> Outcome:
        return umount(self.store, self.work, "tiny", message, Silent())

    def run(self, *words: str, **options: object) -> subprocess.CompletedProcess[str]:
        env = os.environ | {
            "VNFS_STORE": str(self.store.root),
            "VNFS_WORK": str(self.work),
            "VNFS_CACHE": str(self.base / "cache"),
        }
        return subprocess.run(
            [*VNFS, *words],
            env=env,
            capture_output=True,
            check=False,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=60,
        )


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    store = Store(tmp_path / "store")
    publish(store, small_tree(tmp_path / "tree"))
    yield Site(tmp_path, store, tmp_path / "work", tmp_path / "at")
    if mounts.Place(tmp_path / "work", "tiny").read():
        mounts.close(tmp_path / "work", "tiny")
    assert [point for point in mountpoints() if point.startswith(str(tmp_path))] == []


def _members(site: Site, outcome: Outcome) -> dict[str, Entry]:
    """The paths of the newest layer alone."""
    from vnfsbuild.host.fs import walk
    from vnfsbuild.host.mount import squashfs, unmount
    from vnfsbuild.store.toc import Toc, read_entry

    assert outcome.capsule is not None
    point = site.base / "layer"
    point.mkdir(exist_ok=True)
    squashfs(site.store.layer_paths(outcome.capsule)[-1], point)
    try:
        found = Toc.of(read_entry(point, path, info, overlay_xattrs=True) for path, info in walk(point))
    finally:
        unmount(point)
    return found.by_path()


def _append_to_link(at: Path) -> None:
    with open(at / "usr/bin/two", "a") as out:
        out.write("more\n")


def _reopen(at: Path) -> None:
    open(at / "etc/motd", "r+").close()
    (at / "etc/hostname").write_text("other\n")


def _chmod_then_remove_one_name(at: Path) -> None:
    (at / "usr/bin/one").chmod(0o700)
    (at / "usr/bin/one").unlink()


def _recreate(at: Path) -> None:
    shutil.rmtree(at / "etc/conf.d")
    (at / "etc/conf.d").mkdir()
    (at / "etc/conf.d/fresh").write_text("fresh")


def _to_file(at: Path) -> None:
    shutil.rmtree(at / "etc/conf.d")
    (at / "etc/conf.d").write_text("a file now")


def _to_directory(at: Path) -> None:
    (at / "etc/motd").unlink()
    (at / "etc/motd").mkdir()
    (at / "etc/motd/part").write_text("x")


def _capability(at: Path) -> None:
    os.setxattr(at / "usr/bin/one", "security.capability", CAPABILITY)


OPAQUE = ("trusted.overlay.opaque", b"y")
TRAPS: dict[str, tuple[Callable[[Path], object], set[str], set[str]]] = {
    # what is done: (how, paths in the layer beside directories on the way, whiteouts among them)
    "a hard link that is edited carries its siblings": (
        _append_to_link,
        {"/usr/bin/one", "/usr/bin/two", "/usr/sbin/three"},
        set(),
    ),
    "a change under a name that is removed reaches the other names": (
        _chmod_then_remove_one_name,
        {"/usr/bin/one", "/usr/bin/two", "/usr/sbin/three"},
        {"/usr/bin/one"},
    ),
    "a capability on one name is on all": (
        _capability,
        {"/usr/bin/one", "/usr/bin/two", "/usr/sbin/three"},
        set(),
    ),
    "a copy-up that changed nothing is dropped": (_reopen, {"/etc/hostname"}, set()),
    "a removed file is a whiteout": (lambda at: (at / "etc/motd").unlink(), {"/etc/motd"}, {"/etc/motd"}),
    "a removed directory is one whiteout": (
        lambda at: shutil.rmtree(at / "etc/conf.d"),
        {"/etc/conf.d"},
        {"/etc/conf.d"},
    ),
    "a recreated directory is opaque": (_recreate, {"/etc/conf.d", "/etc/conf.d/fresh"}, set()),
    "a directory becomes a file": (_to_file, {"/etc/conf.d"}, set()),
    "a file becomes a directory": (_to_directory, {"/etc/motd", "/etc/motd/part"}, set()),
    "a real .wh. name is a file": (lambda at: (at / "empty/.wh.motd").write_text("x"), {"/empty/.wh.motd"}, set()),
    "a name that is no UTF-8": (
        lambda at: Path(os.fsdecode(os.fsencode(at) + b"/empty/\xff\xfe")).write_text("x"),
        {os.fsdecode(b"/empty/\xff\xfe")},
        set(),
    ),
    "a device node is no whiteout": (
        lambda at: os.mknod(at / "empty/zero", 0o20666, os.makedev(1, 5)),
        {"/empty/zero"},
        set(),
    ),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_the_layer_holds_exactly_what_changed(site: Site, trap: str) -> None:
    action, wanted, hidden = TRAPS[trap]
    at = site.mount()
    action(at)
    view = scan(at)
    outcome = site.umount("trap")
    assert outcome.capsule is not None
    layer = _members(site, outcome)
    ways = {"/", "/etc", "/usr", "/usr/bin", "/usr/sbin", "/empty"}
    assert set(layer) - ways == wanted
    assert {path for path, entry in layer.items() if entry.device == (0, 0)} == hidden
    marks = {name for entry in layer.values() for name, _ in entry.xattrs if name.startswith("trusted.overlay.")}
    assert marks <= {OPAQUE[0]}
    assert (OPAQUE in layer["/etc/conf.d"].xattrs) if trap.startswith("a recreated") else not marks
    assert site.store.toc(outcome.capsule).digest == view.digest


def test_siblings_of_an_edited_hard_link_are_one_file_on_a_node(site: Site) -> None:
    _append_to_link(site.mount())
    outcome = site.umount()
    assert outcome.capsule is not None
    scratch = site.base / "view"
    scratch.mkdir()
    with layers(site.store.layer_paths(outcome.capsule), scratch) as root:
        infos = [(root / name).stat() for name in ("usr/bin/one", "usr/bin/two", "usr/sbin/three")]
        assert len({info.st_ino for info in infos}) == 1
        assert infos[0].st_nlink == 3
        assert (root / "usr/sbin/three").read_text().endswith("more\n")


def test_a_version_says_where_it_came_from(site: Site) -> None:
    first = site.store.get("tiny:1")
    (site.mount() / "etc/motd").write_text("new")
    outcome = site.umount("the reason")
    second = site.store.get("tiny")
    assert outcome.capsule == second
    assert (second.config.version, second.config.parent, second.config.message) == (2, first.digest, "the reason")
    assert second.layers[:1] == first.layers
    assert (second.kernel, second.initrd, second.sbom) == (first.kernel, first.initrd, first.sbom)
    assert compressor_of(site.store.layer_paths(second)[1]) == compressor_of(site.store.layer_paths(first)[0])
    assert not site.at.exists()


def test_nothing_changed_is_no_new_version(site: Site) -> None:
    at = site.mount()
    (at / "etc/scratch").write_text("gone again")
    (at / "etc/scratch").unlink()
    assert site.umount().capsule is None
    assert site.store.versions("tiny") == (1,)


def test_identities_caches_and_logs_are_not_published(site: Site) -> None:
    at = site.mount()
    for name in ("etc/machine-id", "etc/ssh/ssh_host_rsa_key", "etc/passwd-", "root/.bash_history", "var/log/dpkg.log"):
        (at / name).parent.mkdir(parents=True, exist_ok=True)
        (at / name).write_text("secret")
    (at / "var/lib/apt/lists/partial").mkdir(parents=True)
    (at / "var/lib/apt/lists/deb.example_Packages").write_text("Package: x")
    (at / "etc/motd").write_text("published")
    outcome = site.umount()
    assert outcome.capsule is not None
    layer = _members(site, outcome)
    assert {path for path, entry in layer.items() if entry.type is FileType.FILE} == {"/etc/motd"}
    assert "/etc/machine-id" in outcome.dropped
    root = site.store.toc(site.store.get("tiny:1")).by_path()["/root"]
    assert site.store.toc(outcome.capsule).by_path()["/root"] == root


def test_the_packages_follow_the_package_database(site: Site) -> None:
    at = site.mount()
    packages = (Package("base", "1.1", "all"), Package("tree", "2.1.0-1", "amd64"))
    (at / "var/lib/dpkg/status").write_bytes(
        status(*packages) + b"\nPackage: gone\nStatus: deinstall ok config-files\n"
    )
    capsule = site.umount().capsule
    assert capsule is not None
    assert sbom.packages(site.store.blobs.read(capsule.sbom)) == packages


def test_a_changed_kernel_is_said_loudly(site: Site) -> None:
    at = site.mount()
    (at / "boot").mkdir()
    (at / "boot/vmlinuz-6.1.0-2-amd64").write_text("new kernel")
    assert any("rebuild the recipe" in warning for warning in site.umount().warnings)


def test_packages_and_kernel_follow_directories_that_go_as_a_whole(site: Site) -> None:
    at = site.mount()
    (at / "boot").mkdir()
    (at / "boot/vmlinuz-6.1.0-2-amd64").write_text("new kernel")
    site.umount()
    at = site.mount()
    shutil.rmtree(at / "boot")
    shutil.move(at / "var/lib/dpkg", at / "empty/dpkg")
    outcome = site.umount()
    assert any("/boot/vmlinuz-6.1.0-2-amd64" in warning for warning in outcome.warnings)
    assert outcome.capsule is not None
    assert sbom.packages(site.store.blobs.read(outcome.capsule.sbom)) == ()


def test_sockets_stay_with_their_process(site: Site) -> None:
    import socket

    at = site.mount()
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(at / "empty")
        try:
            listener.bind("control")
        finally:
            os.chdir("/")
    (at / "etc/motd").write_text("x")
    capsule = site.umount().capsule
    assert capsule is not None
    assert "/empty/control" not in site.store.toc(capsule).by_path()


def test_a_mounted_capsule_is_not_mounted_again(site: Site) -> None:
    site.mount()
    with pytest.raises(Conflict, match=str(site.at)):
        mounts.mount(site.store, site.work, "tiny", site.base / "elsewhere")
    assert not (site.base / "elsewhere").exists()


def test_a_view_that_is_shown_twice_is_not_taken_apart(site: Site) -> None:
    at = site.mount()
    (at / "etc/motd").write_text("x")
    second = site.base / "second"
    second.mkdir()
    subprocess.run(["mount", "--bind", at, second], check=True)
    try:
        for leave in (site.umount, lambda: mounts.close(site.work, "tiny")):
            with pytest.raises(Busy, match=str(second)) as caught:
                leave()
            assert str(second) in caught.value.hint or str(at) in caught.value.hint
        assert (at / "etc/motd").read_text() == "x"
    finally:
        subprocess.run(["umount", second], check=True)
    assert site.umount().capsule is not None


@pytest.mark.parametrize("place", ["full", "store", "store/new", "work", "work/mounts/x"])
def test_a_capsule_is_not_mounted_over_what_is_needed(site: Site, place: str) -> None:
    (site.base / "full").mkdir()
    (site.base / "full/file").touch()
    there = (site.base / place).exists()
    with pytest.raises(Conflict, match=r"is not empty|is a place of vnfs"):
        mounts.mount(site.store, site.work, "tiny", site.base / place)
    assert (site.base / place).exists() == (there or place == "work")
    assert mounts.opened(site.work) == {}


def test_edits_without_a_record_are_not_thrown_away(site: Site) -> None:
    at = site.mount()
    (at / "etc/motd").write_text("x")
    record = site.work / "mounts/tiny/state.json"
    kept = record.read_bytes()
    record.unlink()
    for gone in (False, True):
        if gone:
            subprocess.run(["umount", at], check=True)
        with pytest.raises(Conflict, match="edits of tiny in"):
            mounts.mount(site.store, site.work, "tiny", site.base / "other")
        assert (site.work / "mounts/tiny/upper/etc/motd").read_text() == "x"
    record.write_bytes(kept)
    assert site.mount() == at


def test_edits_that_fill_the_disk_are_shown_again(site: Site) -> None:
    """The record of what is open is left alone when it is right: there may be no room for another."""
    at = site.mount()
    (at / "etc/motd").write_text("x")
    subprocess.run(["umount", at], check=True)
    record = site.work / "mounts/tiny/state.json"
    before = record.stat().st_ino
    site.mount()
    assert record.stat().st_ino == before


def test_edits_survive_a_reboot(site: Site) -> None:
    at = site.mount()
    (at / "etc/motd").write_text("before the reboot")
    for point in [str(at), *(p for p in mountpoints() if p.startswith(str(site.work)))]:
        subprocess.run(["umount", point], check=True)
    again = mounts.mount(site.store, site.work, "tiny", None)
    assert again.resumed
    assert (again.at / "etc/motd").read_text() == "before the reboot"
    with pytest.raises(NotFound):
        mounts.mount(site.store, site.work, "other", None)


def test_kept_edits_belong_to_their_version(site: Site) -> None:
    (site.mount() / "etc/motd").write_text("2")
    site.umount()
    (site.mount() / "etc/motd").write_text("3")
    subprocess.run(["umount", str(site.at)], check=True)
    with pytest.raises(Conflict, match="tiny:2"):
        site.mount("tiny:1")
    site.mount("tiny:2")


def test_a_version_made_from_an_old_one_says_so(site: Site) -> None:
    (site.mount() / "etc/motd").write_text("2")
    site.umount()
    (site.mount("tiny:1") / "etc/hostname").write_text("3")
    outcome = site.umount()
    assert outcome.capsule is not None
    assert outcome.capsule.config.parent == site.store.get("tiny:1").digest
    assert any("tiny:2 was published meanwhile" in warning for warning in outcome.warnings)


HOLDERS = {
    "directory": ["sh", "-c", "cd {at}/etc && echo ready && exec sleep 60"],
    "open file": ["sh", "-c", "exec 3<{at}/etc/motd && echo ready && exec sleep 60"],
    "mapped file": [
        sys.executable,
        "-c",
        # mmap of the standard library keeps a descriptor open; libc's does not.
        "import ctypes, os, time; c = ctypes.CDLL(None); c.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] +"
        "[ctypes.c_int] * 3 + [ctypes.c_long]; f = os.open('{at}/etc/motd', os.O_RDONLY);"
        "c.mmap(None, 4096, 1, 2, f, 0);"
        "os.close(f); print('ready', flush=True); time.sleep(60)",
    ],
    "other namespace": ["unshare", "-m", "sh", "-c", "cd {at} && echo ready && exec sleep 60"],
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_umount_names_the_process_inside(site: Site, holder: str) -> None:
    at = site.mount()
    (at / "etc/motd").write_text("x")
    words = [word.format(at=at) for word in HOLDERS[holder]]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            with pytest.raises(Busy, match=rf"process {process.pid} \("):
                site.umount()
            assert (at / "etc/motd").read_text() == "x"
        finally:
            process.kill()
    assert site.umount().capsule is not None


def test_without_space_nothing_is_lost(site: Site) -> None:
    (site.mount() / "etc/big").write_bytes(os.urandom(6 << 20))
    ingest = site.store.blobs.ingest
    ingest.mkdir(exist_ok=True)
    with tmpfs(ingest, size=2 << 20), pytest.raises(NoSpace):
        site.umount()
    assert site.store.versions("tiny") == (1,)
    outcome = site.umount("with space")
    assert outcome.capsule is not None
    assert site.store.toc(outcome.capsule).by_path()["/etc/big"].size == 6 << 20


def test_kill_during_umount_leaves_the_old_state_or_the_new(site: Site) -> None:
    code = (
        "import sys; from pathlib import Path; from vnfsbuild.deliver.edit.publish import umount\n"
        "from vnfsbuild.store.capsules import Store; from vnfsbuild.progress import Silent\n"
        "umount(Store(Path(sys.argv[1])), Path(sys.argv[2]), 'tiny', 'killed', Silent())"
    )
    chance = random.Random(7)
    for number in range(8):
        before = site.store.versions("tiny")
        (site.mount("tiny:1") / "etc/motd").write_text(f"round {number}")
        with subprocess.Popen([sys.executable, "-c", code, str(site.store.root), str(site.work)]) as process:
            time.sleep(chance.uniform(0.08, 0.45))
            process.send_signal(signal.SIGKILL)
        if mounts.Place(site.work, "tiny").read():
            outcome = site.umount("finished")
            assert outcome.capsule is not None
        after = site.store.versions("tiny")
        assert after == (*before, before[-1] + 1)
        newest = site.store.get("tiny")
        entry = site.store.toc(newest).by_path()["/etc/motd"]
        assert entry.size == len(f"round {number}")


_KILLED = """
import os, signal, sys
from pathlib import Path
from vnfsbuild.deliver.edit import mounts
from vnfsbuild.deliver.edit.publish import umount
from vnfsbuild.progress import Silent
from vnfsbuild.store.capsules import Store

place, work, at = map(Path, sys.argv[1:4])
store, verb, last = Store(place), sys.argv[4], int(sys.argv[5])

def step(event, arguments):
    # Each change of the file system that Python makes, and each program it starts, is a step to be killed at.
    global last
    if event in {"os.rename", "os.mkdir", "os.rmdir", "os.remove", "subprocess.Popen", "ctypes.dlsym", "shutil.rmtree"}:
        last -= 1
        if last < 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(step)
if verb == "mount":
    mounts.mount(store, work, "tiny", at)
else:
    umount(store, work, "tiny", "killed", Silent())
os._exit(7)
"""


def _killed_at(site: Site, verb: str, number: int) -> bool:
    """Run a verb that is killed before its step `number`; false when it has no more than that."""
    argv = [sys.executable, "-c", _KILLED, site.store.root, site.work, site.at, verb, str(number)]
    done = subprocess.run(argv, capture_output=True, check=False, timeout=60)
    assert done.returncode in {-signal.SIGKILL, 7}, done.stderr
    return done.returncode != 7


def test_mount_killed_at_each_step_leaves_nothing_that_the_next_does_not_cure(site: Site) -> None:
    number = 0
    while _killed_at(site, "mount", number):
        if not (mounts.Place(site.work, "tiny").read() and mounts.Place(site.work, "tiny").mounted_at()):
            site.mount()
        mounts.close(site.work, "tiny")
        assert not site.at.exists(), number
        assert [point for point in mountpoints() if point.startswith(str(site.base))] == []
        assert not [path for path in (site.work / "mounts").iterdir() if not path.name.endswith(".lock")], number
        number += 1
    assert number > 5


def test_umount_killed_at_each_step_keeps_the_edits_and_publishes_once(site: Site) -> None:
    number, going = 0, True
    while going:
        before = site.store.versions("tiny")
        text = f"step {number}"
        (site.mount("tiny:1") / "etc/motd").write_text(text)
        going = _killed_at(site, "umount", number)
        if mounts.Place(site.work, "tiny").read():
            assert site.umount("again").capsule is not None
        assert site.store.versions("tiny") == (*before, before[-1] + 1), number
        assert site.store.toc(site.store.get("tiny")).by_path()["/etc/motd"].size == len(text)
        assert [point for point in mountpoints() if point.startswith(str(site.base))] == []
        number += 1
    assert number > 20
    mounts.mount(site.store, site.work, "tiny:1", site.at)
    mounts.close(site.work, "tiny")
    assert not site.at.exists()
    assert [*site.store.blobs.ingest.iterdir(), *site.store.root.glob(".*")] == []


def test_set_uid_programs_of_a_capsule_are_nothing_for_users_of_the_host(site: Site) -> None:
    at = site.mount()
    shutil.copy("/bin/busybox", at / "usr/bin/id")
    (at / "usr/bin/id").chmod(0o4755)
    assert os.statvfs(at).f_flag & os.ST_NOSUID
    assert mounts.Place(site.work, "tiny").root.stat().st_mode & 0o777 == 0o700
    outcome = site.umount()
    assert _members(site, outcome)["/usr/bin/id"].mode == 0o4755


def test_odd_characters_in_the_places_of_a_capsule(tmp_path: Path) -> None:
    base = tmp_path / "a, b:c\\d=e\tf"
    base.mkdir()
    store = Store(base / "store")
    publish(store, small_tree(base / "tree"))
    site = Site(base, store, base / "work", base / "at")
    for number in (1, 2):
        (site.mount() / "etc/motd").write_text(f"changed {number}")
        assert mounts.point_of(site.work, "tiny") == site.at
        assert site.umount().capsule is not None
    assert [point for point in mountpoints() if point.startswith(str(tmp_path))] == []


def _stacked(site: Site, count: int) -> None:
    """Make the newest version one of `count` layers, each of them the first one again."""
    base = site.store.get("tiny")
    site.store.publish(
        base.config,
        layers=base.layers * count,
        kernel=base.kernel,
        initrd=base.initrd,
        toc=base.toc,
        sbom=base.sbom,
    )


def test_a_version_of_many_layers_is_edited_like_any_other(site: Site) -> None:
    _stacked(site, 120)
    at = site.mount()
    (at / "etc/motd").write_text("one more\n")
    assert site.umount().capsule is not None
    again = site.mount()
    assert (again / "etc/motd").read_text() == "one more\n"
    assert (again / "etc/hostname").read_text() == "node\n"


def test_more_layers_than_the_kernel_can_stack_are_refused_in_words(site: Site) -> None:
    _stacked(site, 300)
    done = site.run("mount", "tiny", "--at", str(site.at))
    assert done.returncode == 1
    assert "300 layers are more than this kernel can lay over each other" in done.stderr
    assert "build the recipe again" in done.stderr
    assert not [point for point in mountpoints() if point.startswith(str(site.base))]


def test_close_asks_and_without_a_terminal_needs_yes(site: Site) -> None:
    (site.mount() / "etc/motd").write_text("x")
    refused = site.run("close", "tiny")
    assert refused.returncode == 1
    assert "--yes" in refused.stderr
    assert (site.at / "etc/motd").read_text() == "x"
    assert site.run("close", "tiny", "--yes").returncode == 0
    assert site.store.versions("tiny") == (1,)
    assert not site.at.exists()
    assert "is not mounted" in site.run("umount", "tiny").stderr


def test_a_mount_that_fails_half_way_leaves_nothing(site: Site) -> None:
    (site.mount() / "etc/motd").write_text("x")
    capsule = site.umount().capsule
    assert capsule is not None
    site.store.layer_paths(capsule)[1].chmod(0o644)
    site.store.layer_paths(capsule)[1].write_bytes(b"\0" * capsule.layers[1].size)
    failed = site.run("mount", "tiny", "--at", str(site.at))
    assert failed.returncode == 1
    assert not site.at.exists()
    assert mounts.opened(site.work) == {}
