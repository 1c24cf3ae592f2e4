"""livesync and status against a node with a real sshd, rsync, overlay and squashfs, through the real command line."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.support.livenode import SKIP, LiveNode, Site, call, live_node, publish, unpack_root
from tests.support.ports import free_port
from vnfsbuild.deliver.livesync.plan import differences
from vnfsbuild.deliver.livesync.skip import protection
from vnfsbuild.store.capsules import Store
from vnfsbuild.store.manifest import Capsule
from vnfsbuild.store.toc import Entry, FileType, Toc

pytestmark = [pytest.mark.root, pytest.mark.network]

HOSTILE = (
    "new\nd./line",
    "-rf",
    "sp ace ",
    "quote'\"$(x)`y`",
    "#hash",
    "glob*[x]?",
    "back\\slash\\040",
    "tab\tand\x01",
    "\udcff\udcfe\udc80",
    "ünïcode",
)


SERVICE = "[Service]\nType=exec\n"


def write(root: Path, path: str, content: str = "", mode: int = 0o644) -> Path:
    full = root / path.lstrip("/")
    full.parent.mkdir(parents=True, exist_ok=True)
    full.write_text(content or f"{path.encode(errors='surrogateescape')!r}\n")
    full.chmod(mode)
    return full


def first_version(root: Path) -> None:
    """What the versions of these tests differ in, as it is in the first."""
    for path in ("edited", "gone", "mode", "to-link", "hosts", "kept/in-first", "owner", "same"):
        write(root, f"/etc/{path}", f"{path} 1\n")
    for path in ("removed/a", "removed/deep/b", "flip/dir/x/y", "flip/dir/z", "flip/file", "directory/f"):
        write(root, f"/opt/{path}")
    for name in HOSTILE:
        write(root, f"/opt/hostile/change {name}", "1")
        write(root, f"/opt/hostile/delete {name}", "1")
        write(root, f"/opt/hostile/{name}/below", "1")
    (root / "opt/flip/link").symlink_to("file")
    (root / "etc/link").symlink_to("same")
    for name in ("gains", "loses", "keeps"):
        shutil.copy(root / "usr/bin/true", root / "usr/bin" / name)
    call("setcap", "cap_net_raw+ep", root / "usr/bin/loses")
    call("setcap", "cap_net_raw+ep", root / "usr/bin/keeps")
    shutil.copy(root / "usr/bin/sleep", root / "usr/bin/sleeper")
    one = write(root, "/opt/links/one", "1")
    for name in ("two", "three"):
        os.link(one, one.with_name(name))
    write(root, "/opt/unlinked/one", "1")
    write(root, "/home/first", "capsule\n")
    write(root, "/home/gone", "capsule\n")
    write(root, "/var/log/packages", "1\n")
    (root / "etc/machine-id").write_text("")
    shutil.copy(root / "usr/bin/sleep", root / "usr/bin/serve")
    write(root, "/etc/systemd/system/serve.service", SERVICE + "ExecStart=/usr/bin/serve 1000\n")
    wants = root / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True, exist_ok=True)
    (wants / "serve.service").symlink_to("../serve.service")


def second_version(root: Path) -> None:
    for path in ("edited", "hosts", "kept/in-first"):
        write(root, f"/etc/{path}", f"{path} 2\n")
    write(root, "/etc/kept/in-second")
    (root / "etc/gone").unlink()
    (root / "etc/mode").chmod(0o4711)
    os.chown(root / "etc/owner", 12, 34)
    (root / "etc/link").unlink()
    (root / "etc/link").symlink_to("../opt")
    (root / "etc/to-link").unlink()
    (root / "etc/to-link").symlink_to("edited")
    write(root, "/usr/bin/program", "#!/bin/sh\necho it runs\n", 0o755)
    for path in ("new/deep/tree/f", "new/g"):
        write(root, f"/opt/{path}")
    (root / "opt/new/deep").chmod(0o2750)
    os.chown(root / "opt/new/deep", 5, 6)
    os.setxattr(root / "opt/new", "trusted.mark", b"\0new\n")
    (root / "opt/directory").chmod(0o711)
    os.chown(root / "opt/directory", 7, 8)
    shutil.rmtree(root / "opt/removed")
    shutil.rmtree(root / "opt/flip/dir")
    write(root, "/opt/flip/dir", "now a file\n")
    (root / "opt/flip/file").unlink()
    write(root, "/opt/flip/file/is/a/directory")
    (root / "opt/flip/link").unlink()
    write(root, "/opt/flip/link/is/too")
    for name in HOSTILE:
        write(root, f"/opt/hostile/change {name}", "2")
        write(root, f"/opt/hostile/add {name}", "2")
        (root / "opt/hostile" / f"delete {name}").unlink()
        write(root, f"/opt/hostile/{name}/below", "2")
        write(root, f"/opt/hostile/{name}/add", "2")
    write(root, "/#at the top", "2")
    write(root, "/-n", "2")
    call("setcap", "cap_net_admin,cap_sys_time+ep", root / "usr/bin/gains")
    call("setcap", "-r", root / "usr/bin/loses")
    shutil.copy(root / "usr/bin/env", root / "usr/bin/sleeper")
    (root / "opt/links/one").write_text("2")
    os.link(root / "opt/links/one", root / "opt/links/zero")
    os.link(root / "opt/unlinked/one", root / "opt/unlinked/two")
    os.mkfifo(root / "opt/fifo")
    os.mknod(root / "opt/device", 0o600 | 0o020000, os.makedev(1, 7))
    write(root, "/home/second", "capsule\n")
    (root / "home/gone").unlink()
    write(root, "/var/log/packages", "2\n")
    with open(root / "usr/bin/serve", "ab") as program:
        program.write(b"\0")
    write(root, "/etc/systemd/system/serve.service", SERVICE + "ExecStart=/usr/bin/serve 2000\n")


@dataclass(frozen=True)
class Versions:
    site: Site
    first: Capsule
    second: Capsule
    first_toc: Toc
    second_toc: Toc
    second_root: Path


@pytest.fixture(scope="session")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Versions]:
    place = tmp_path_factory.mktemp("livesync")
    store = Store(place / "store")
    root = unpack_root(place / "root")
    first_version(root)
    first = publish(store, root, place)
    second_version(root)
    second = publish(store, root, place, kernel=b"another kernel")
    yield Versions(Site(store, place / "work"), first, second, store.toc(first), store.toc(second), root)
    shutil.rmtree(place)


@pytest.fixture
def node(versions: Versions, tmp_path: Path) -> Iterator[LiveNode]:
    with live_node(tmp_path / "node", versions.site.store, versions.first) as running:
        yield running
    assert not versions.site.leftovers()


def wrong(node: LiveNode, wanted: Toc) -> dict[str, tuple[str, ...]]:
    """Where the node is not what a version says, by an independent look at its root."""
    protected = protection(SKIP, ["/home"])
    live, target = node.toc().by_path(), wanted.by_path()
    found = {
        path: differences(live.get(path), target.get(path))
        for path in live.keys() | target.keys()
        if not protected(path)
    }
    return {path: differs for path, differs in found.items() if differs}


def groups(toc: Toc, below: str) -> set[frozenset[str]]:
    links: dict[str, set[str]] = {}
    for entry in toc.entries:
        if entry.link and entry.path.startswith(below):
            links.setdefault(entry.link, set()).add(entry.path)
    return {frozenset(group) for group in links.values()}


def sync(versions: Versions, node: LiveNode, *words: str, capsule: str = "compute") -> dict[str, object]:
    answer = versions.site.vnfs("livesync", capsule, node.word, "--json", *words, key=node)
    assert answer.code == 0, answer.output + answer.errors
    return answer.json[0]


def drift(versions: Versions, node: LiveNode) -> dict[str, list[str]]:
    answer = versions.site.vnfs("status", node.word, "--json", key=node)
    found = {item["path"]: item["differs"] for item in answer.json[0]["drift"]}  # type: ignore[attr-defined, index]
    assert answer.json[0]["error"] is None, answer.output
    assert answer.code == (3 if found else 0), answer.output
    return found


def upper(node: LiveNode) -> str:
    return node.sh("cd /run/vnfs/rw/upper && find . -path ./tmp -prune -o -printf '%P %y %s %m %T@\\n' | sort")


def test_a_booted_node_has_no_drift_and_a_plan_changes_nothing(versions: Versions, node: LiveNode) -> None:
    assert drift(versions, node) == {}
    before = upper(node)
    report = sync(versions, node, "--plan")
    kinds = {item["path"]: item["kind"] for item in report["changes"]}  # type: ignore[attr-defined]
    assert kinds["/usr/bin/program"] == "add"
    assert kinds["/etc/edited"] == "change"
    assert kinds["/etc/gone"] == "delete"
    assert not any(path.startswith(("/home", "/var/log", "/etc/kept", "/etc/hosts")) for path in kinds)
    assert {"/etc/hosts", "/home/gone", "/home/second"} <= set(report["skipped"])  # type: ignore[call-overload]
    assert upper(node) == before
    assert node.provenance()["version"] == 1


def test_a_running_node_becomes_the_new_version(versions: Versions, node: LiveNode) -> None:
    node.sh("/usr/bin/sleeper 600 >/dev/null 2>&1 & echo node > /etc/hosts; echo node > /etc/kept/own")
    report = sync(versions, node)
    assert report["state"] == "updated"
    assert report["drift"] == []
    assert wrong(node, versions.second_toc) == {}
    assert groups(node.toc(), "/opt") == groups(versions.second_toc, "/opt")
    assert groups(versions.second_toc, "/opt")

    assert node.sh("program") == "it runs\n"
    assert node.sh("cat /etc/hosts /etc/kept/own /etc/kept/in-first; ls /home /etc/kept") == (
        "node\nnode\nkept/in-first 1\n/etc/kept:\nin-first\nown\n\n/home:\nmine\n"
    )
    assert node.sh("cat /var/log/packages") == "1\n"
    gained = subprocess.run(["getcap", node.root / "usr/bin/gains"], check=True, capture_output=True, text=True).stdout
    assert gained.endswith("cap_net_admin,cap_sys_time=ep\n")

    said = node.provenance()
    assert (said["version"], said["manifest"], said["tree"]) == (2, versions.second.digest, versions.second.config.tree)
    assert said["previous"] == versions.first.digest
    assert said["node"] == "52:54:00:12:34:56"
    assert "livesynced" in said
    assert len(report["processes"]) == 1  # type: ignore[arg-type]
    assert any("kernel" in reason for reason in report["reboot"])  # type: ignore[attr-defined]
    assert node.sh("ls /var/lib/vnfs/livesync") == ""

    assert drift(versions, node) == {}
    assert sync(versions, node)["state"] == "unchanged"
    assert sync(versions, node, "--plan")["changes"] == []


def test_undo_brings_the_former_version_back_and_undoing_that_the_later(versions: Versions, node: LiveNode) -> None:
    answer = versions.site.vnfs("livesync", "compute", node.word, "--undo", key=node)
    assert answer.code == 1
    assert "nothing to undo" in answer.output
    sync(versions, node)
    assert sync(versions, node, "--undo")["to"] == "compute:1"
    assert wrong(node, versions.first_toc) == {}
    assert node.provenance()["manifest"] == versions.first.digest
    assert drift(versions, node) == {}
    assert sync(versions, node, "--undo")["to"] == "compute:2"
    assert wrong(node, versions.second_toc) == {}


EDITS = (
    ("content", "echo x > /etc/same", {"/etc/same": ["content"]}),
    ("the same size", "printf 'SAME 1\\n' > /etc/same", {"/etc/same": ["content"]}),
    ("mode", "chmod 600 /etc/same", {"/etc/same": ["mode"]}),
    ("owner", "chown 7:7 /etc/same", {"/etc/same": ["owner"]}),
    ("type", "rm /etc/same; mkdir /etc/same", {"/etc/same": ["type"]}),
    ("target", "ln -sfn /nowhere /etc/link", {"/etc/link": ["target"]}),
    ("a deleted file", "rm /etc/same", {"/etc/same": ["missing"]}),
    ("a new file", "echo x > /etc/local", {"/etc/local": ["added"]}),
    ("a new directory", "mkdir /srv/x; echo y > /srv/x/y", {"/srv/x": ["added"], "/srv/x/y": ["added"]}),
    ("a lost capability", "cp /usr/bin/keeps /x; mv /x /usr/bin/keeps", {"/usr/bin/keeps": ["xattrs"]}),
    ("a directory's mode", "chmod 700 /opt/directory", {"/opt/directory": ["mode"]}),
    (
        "a directory made anew",
        "rm -r /opt/removed; mkdir /opt/removed",
        {path: ["missing"] for path in ("/opt/removed/a", "/opt/removed/deep", "/opt/removed/deep/b")},
    ),
    ("only a time", "touch /etc/same", {}),
    ("a copy of the same", "cp -a /etc/same /x; mv /x /etc/same", {}),
    ("written and taken back", "echo x > /etc/local; rm /etc/local", {}),
    ("the skip list", "echo x > /etc/hosts; rm -r /var/log/*; mkdir -p /etc/kept/a/b", {}),
    ("a file system of its own", "rm /home/mine; echo x > /home/x", {}),
    ("a strange name", "echo x > '/etc/a\nb'", {"/etc/a\nb": ["added"]}),
)


def test_status_names_what_was_changed_by_hand(versions: Versions, tmp_path: Path) -> None:
    for number, (title, script, expected) in enumerate(EDITS):
        with live_node(tmp_path / str(number), versions.site.store, versions.first) as node:
            node.sh(script)
            assert drift(versions, node) == expected, title


def test_status_says_it_in_words_and_exits_with_3(versions: Versions, node: LiveNode) -> None:
    node.sh("printf x > /etc/$(printf 'esc\\033[31m'); echo y >> /etc/same")
    answer = versions.site.vnfs("status", node.word, key=node)
    assert answer.code == 3
    assert answer.output.splitlines()[0] == f"{node.word}: compute:1 {versions.first.digest}: 2 drifted"
    assert "  /etc/same: content" in answer.output.splitlines()
    assert "\x1b" not in answer.output


HAND = (
    "echo mine > /etc/edited; rm /etc/mode; echo mine > /etc/local; "
    "mkdir -p /opt/removed/own; echo o > /opt/removed/own/f"
)


def test_drift_is_kept_and_named(versions: Versions, node: LiveNode) -> None:
    node.sh(HAND)
    report = sync(versions, node)
    kept = {item["path"] for item in report["drift"]}  # type: ignore[attr-defined]
    # /opt/removed is not in the version that the node runs from now on: it stays for what lies in it.
    removed = {"/opt/removed", "/opt/removed/own", "/opt/removed/own/f"}
    assert kept == {"/etc/edited", "/etc/mode", "/etc/local"} | removed
    assert node.sh("cat /etc/edited /etc/local /opt/removed/own/f; ls /opt/removed") == "mine\nmine\no\nown\n"
    assert node.provenance()["version"] == 2
    assert set(wrong(node, versions.second_toc)) == kept
    assert set(drift(versions, node)) == kept


def test_drift_is_overwritten_with_a_copy_kept(versions: Versions, node: LiveNode) -> None:
    node.sh(HAND + "; chmod 640 /etc/edited; chown 5:6 /etc/edited")
    report = sync(versions, node, "--on-drift", "overwrite")
    assert wrong(node, versions.second_toc) == {}
    place = report["backup"]
    assert node.sh(f"cd {place}/files && cat etc/edited opt/removed/own/f && stat -c '%a %u %g' etc/edited") == (
        "mine\no\n640 5 6\n"
    )
    assert sorted(node.sh(f"cat {place}/paths").split("\0")[:-1]) == [
        "./etc/edited",
        "./etc/local",
        "./opt/removed/own",
        "./opt/removed/own/f",
    ]
    assert drift(versions, node) == {}


def test_drift_can_forbid_the_whole_update(versions: Versions, node: LiveNode) -> None:
    node.sh(HAND)
    before = upper(node)
    answer = versions.site.vnfs("livesync", "compute", node.word, "--on-drift", "fail", key=node)
    assert answer.code == 3
    assert "/etc/edited: content: drift, nothing was applied" in answer.output
    assert upper(node) == before
    assert node.provenance()["version"] == 1


def test_nothing_is_written_through_a_link_that_the_node_put_in_the_way(versions: Versions, node: LiveNode) -> None:
    node.sh(
        "mkdir /root/elsewhere; cp -a /opt/hostile/. /root/elsewhere; "
        "rm -r /opt/hostile; ln -s /root/elsewhere /opt/hostile"
    )
    before = node.sh("cd /root/elsewhere; find . -type f -exec sha256sum {} + | sort")
    report = sync(versions, node)
    assert "/opt/hostile" in {item["path"] for item in report["drift"]}  # type: ignore[attr-defined]
    assert node.sh("cd /root/elsewhere; find . -type f -exec sha256sum {} + | sort") == before
    assert node.sh("readlink /opt/hostile") == "/root/elsewhere\n"
    assert node.sh("program") == "it runs\n"


def test_a_directory_with_a_mount_in_it_is_left_standing(versions: Versions, node: LiveNode) -> None:
    pid = node.inside
    inside = ["nsenter", "-t", str(pid), "--mount", "--root", "--wd=/"]
    call(*inside, "mkdir", "/opt/removed/deep/mount")
    call(*inside, "mount", "-t", "tmpfs", "own", "/opt/removed/deep/mount")
    call(*inside, "touch", "/opt/removed/deep/mount/file")
    sync(versions, node)
    assert (
        node.sh("find /opt/removed")
        == "/opt/removed\n/opt/removed/deep\n/opt/removed/deep/mount\n/opt/removed/deep/mount/file\n"
    )
    assert drift(versions, node) == {}


@pytest.mark.parametrize("delay", [None, 0.0, 0.05, 0.1, 0.2, 0.3, 0.45])
def test_an_update_that_was_cut_off_on_the_node_is_finished_by_the_next(
    versions: Versions, node: LiveNode, delay: float | None
) -> None:
    """The program that applies the steps is killed on the node: as soon as its journal is there, or a while after it
    began."""
    killed = threading.Event()
    journal = node.root / "var/lib/vnfs/livesync/journal"

    def killer() -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end and not killed.is_set():
            victims = applying(node)
            if victims and (delay is not None or journal.exists()):
                time.sleep(delay or 0.0)
                for victim in victims + applying(node):
                    try:
                        os.kill(victim, signal.SIGKILL)
                        killed.set()
                    except ProcessLookupError:
                        pass
                return
            time.sleep(0.002)

    thread = threading.Thread(target=killer)
    thread.start()
    answer = versions.site.vnfs("livesync", "compute", node.word, "--json", key=node)
    thread.join()
    if answer.code == 0:
        assert delay is not None
        assert wrong(node, versions.second_toc) == {}  # it ended before it was killed
        return
    assert node.provenance()["version"] == 1
    cut = versions.site.vnfs("status", node.word, "--json", key=node)
    begun = bool(cut.json[0]["unfinished"])
    assert cut.code == (3 if begun else 0), cut.output
    assert begun or delay is not None
    report = sync(versions, node)
    assert report["drift"] == []
    assert wrong(node, versions.second_toc) == {}
    assert groups(node.toc(), "/opt") == groups(versions.second_toc, "/opt")
    assert drift(versions, node) == {}


def applying(node: LiveNode) -> list[int]:
    """Processes of the node that apply steps: the shell and what it started."""
    found = []
    space = Path(f"/proc/{node.inside}/ns/pid").stat().st_ino
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if b"apply" in words and b"livesync" in words and (entry / "ns/pid").stat().st_ino == space:
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("delay", [0.4, 0.7, 1.0, 1.4, 1.8])
def test_an_update_whose_server_was_killed_is_finished_by_the_next(
    versions: Versions, node: LiveNode, delay: float
) -> None:
    argv = versions.site.argv("livesync", "compute", node.word, key=node)
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(delay)
    process.kill()
    process.wait()
    end = time.monotonic() + 30  # the node holds its lock until it notices that nobody is there any more
    while versions.site.vnfs("livesync", "compute", node.word, key=node).code and time.monotonic() < end:
        time.sleep(0.2)
    assert sync(versions, node)["drift"] == []
    assert wrong(node, versions.second_toc) == {}
    assert drift(versions, node) == {}
    # What the killed one left in the work directory goes when the next one needs a place there.
    sync(versions, node, "--undo")
    assert wrong(node, versions.first_toc) == {}


def test_after_a_cut_off_update_another_version_can_be_chosen(versions: Versions, node: LiveNode) -> None:
    """Half of the second version is on the node, with the journal that says so; then the first is asked for."""
    journal = f"t{versions.second.digest}\0d./opt/new\0f./etc/edited\0u./etc/gone\0".encode()
    state = node.root / "var/lib/vnfs/livesync"
    node.sh("mkdir -p /var/lib/vnfs/livesync; printf 'edited 2\\n' > /etc/edited; mkdir -m 700 /opt/new; rm /etc/gone")
    (state / "journal").write_bytes(journal)
    report = sync(versions, node, capsule="compute:1")
    assert report["drift"] == []
    assert wrong(node, versions.first_toc) == {}
    assert not (state / "journal").exists()


def test_two_livesyncs_do_not_meet_on_a_node(versions: Versions, node: LiveNode) -> None:
    holder = ["ssh", "-T", "-i", node.identity, "-p", str(node.port), "-o", f"UserKnownHostsFile={node.known_hosts}"]
    remote = "exec 9>/run/vnfs/livesync.lock; flock -n 9 && echo held && exec cat"
    with subprocess.Popen(
        [*map(str, holder), "root@127.0.0.1", remote], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        answer = versions.site.vnfs("livesync", "compute", node.word, "--json", key=node)
        assert answer.code == 1
        assert answer.json[0]["error"]["ref"] == "busy"  # type: ignore[index]
        assert versions.site.vnfs("status", node.word, key=node).code == 0
        process.communicate(b"", 10)
    assert sync(versions, node)["state"] == "updated"


def test_one_node_that_fails_does_not_stop_the_others(versions: Versions, node: LiveNode, tmp_path: Path) -> None:
    with ExitStack() as stack:
        other = stack.enter_context(live_node(tmp_path / "other", versions.site.store, versions.first))
        both = tmp_path / "known"
        both.write_text(node.known_hosts.read_text() + other.known_hosts.read_text())
        other.sh(f"echo '{(node.directory / 'key.pub').read_text()}' >> /root/.ssh/authorized_keys")
        words = [f"root@127.0.0.1:{free_port()}", node.word, other.word]
        answer = versions.site.vnfs(
            "livesync", "compute", *words, "--json", "--identity", str(node.identity), "--known-hosts", str(both)
        )
        assert answer.code == 1
        assert [item["state"] for item in answer.json] == ["failed", "updated", "updated"]
        assert answer.json[0]["error"]["ref"] == "network"  # type: ignore[index]
        assert wrong(other, versions.second_toc) == {}
        status = ("status", *words, "--progress", "plain", "--identity", str(node.identity), "--known-hosts", str(both))
        assert re.search(r"status: done in [0-9.]+ s, 2 nodes", versions.site.vnfs(*status).errors)


def test_a_version_that_the_store_does_not_have_is_an_error_that_says_what_to_do(
    versions: Versions, node: LiveNode
) -> None:
    for key, value, word in (
        ("manifest", "sha256:" + "0" * 64, "pull or import"),
        ("tree", "sha256:" + "0" * 64, "but sha256:"),
        ("capsule", "other", "but sha256:"),
        ("capsule", "../../etc", "does not say"),
        ("version", [1] * 5, "does not say"),
        ("x", "y" * 70_000, "too large"),
    ):
        said = json.dumps(node.provenance() | {key: value})
        before = node.provenance()
        (node.root / "run/vnfs/provenance.json").write_text(said)
        for command in (("status",), ("livesync", "compute")):
            answer = versions.site.vnfs(*command, node.word, key=node)
            assert answer.code == 1
            assert word in answer.output, answer.output
        (node.root / "run/vnfs/provenance.json").write_text(json.dumps(before))
    assert drift(versions, node) == {}


def test_host_keys_are_checked(versions: Versions, node: LiveNode, tmp_path: Path) -> None:
    empty = tmp_path / "known_hosts"
    words = [node.word, "--identity", str(node.identity), "--known-hosts", str(empty)]
    answer = versions.site.vnfs("status", *words)
    assert answer.code == 1
    assert "--accept-new" in answer.output
    assert versions.site.vnfs("status", *words, "--accept-new").code == 0
    assert versions.site.vnfs("status", *words).code == 0
    other = (tmp_path / "node/key.pub").read_text()
    empty.write_text(f"[127.0.0.1]:{node.port} {other}")
    assert versions.site.vnfs("status", *words, "--accept-new").code == 1


def test_a_node_without_room_is_left_alone(versions: Versions, node: LiveNode) -> None:
    inside = ["nsenter", "-t", str(node.inside), "--mount", "--root", "--wd=/"]
    call(*inside, "mount", "-o", "remount,size=200k", "/run/vnfs/rw")
    answer = versions.site.vnfs("livesync", "compute", node.word, "--json", key=node)
    assert answer.code == 1
    assert wrong(node, versions.first_toc) == {}
    call(*inside, "mount", "-o", "remount,size=1G", "/run/vnfs/rw")
    sync(versions, node)
    assert wrong(node, versions.second_toc) == {}


def test_the_device_and_the_pipe_are_what_they_should_be(versions: Versions, node: LiveNode) -> None:
    sync(versions, node)
    found: dict[str, Entry] = node.toc().by_path()
    assert found["/opt/fifo"].type is FileType.FIFO
    assert found["/opt/device"].device == (1, 7)


def test_a_node_with_services_reloads_them_and_says_which_to_restart(versions: Versions, tmp_path: Path) -> None:
    with live_node(tmp_path / "node", versions.site.store, versions.first, init="systemd") as node:
        node.sh("timeout 45 systemctl is-system-running --wait || systemctl --failed")
        assert drift(versions, node) == {}
        running = node.sh("systemctl show -P MainPID serve")
        report = sync(versions, node)
        assert (report["restart"], report["restarted"], report["processes"]) == (["serve.service"], [], [])
        assert node.sh("systemctl show -P MainPID serve") == running
        assert node.sh("systemctl show -P NeedDaemonReload serve") == "no\n"
        assert "2000" in node.sh("systemctl show -P ExecStart serve")
        assert drift(versions, node) == {}

        report = sync(versions, node, "--undo", "--restart")
        assert (report["restart"], report["restarted"]) == ([], ["serve.service"])
        assert node.sh("systemctl show -P MainPID serve") != running
        assert node.sh("tr '\\0' ' ' < /proc/$(systemctl show -P MainPID serve)/cmdline") == "/usr/bin/serve 1000 "
        assert drift(versions, node) == {}


def test_one_version_follows_another_on_the_same_boot(versions: Versions, node: LiveNode, tmp_path: Path) -> None:
    """The third version undoes some of the second, so that the node's lower layer shows through where it should not."""
    shutil.copytree(versions.site.store.root, tmp_path / "store")
    site = replace(versions.site, store=Store(tmp_path / "store"))
    chain = replace(versions, site=site)
    root = tmp_path / "third"
    call("cp", "-a", versions.second_root, root)
    write(root, "/etc/edited", "edited 1\n")
    write(root, "/opt/removed/a")
    shutil.rmtree(root / "opt/new")
    (root / "etc/mode").chmod(0o644)
    third = publish(site.store, root, tmp_path)
    shutil.rmtree(root)

    sync(chain, node, capsule="compute:2")
    assert sync(chain, node, "--on-drift", "fail")["to"] == "compute:3"
    assert wrong(node, site.store.toc(third)) == {}
    assert drift(chain, node) == {}
    said = node.provenance()
    assert (said["previous"], said["base"]) == (versions.second.digest, versions.first.digest)
    sync(chain, node, "--on-drift", "fail", capsule="compute:1")
    assert wrong(node, versions.first_toc) == {}
    assert drift(chain, node) == {}


def test_an_interrupted_livesync_ends_at_once_and_leaves_nothing_behind(versions: Versions, node: LiveNode) -> None:
    argv = versions.site.argv("livesync", "compute", node.word, key=node)
    with tempfile.TemporaryDirectory(prefix="vnfs-t-") as scratch:  # a short name: sockets lie in it
        for delay in (0.5, 1.0, 1.5):
            process = subprocess.Popen(
                argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=os.environ | {"TMPDIR": scratch}
            )
            time.sleep(delay)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
            # Before there is anything to undo it is the kernel that ends it.
            assert process.returncode in {0, 130, -signal.SIGINT}, errors
            assert not versions.site.leftovers()
            assert list(Path(scratch).iterdir()) == []
    sync(versions, node)
    assert wrong(node, versions.second_toc) == {}
