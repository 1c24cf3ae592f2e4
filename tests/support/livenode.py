"""A node without a machine: a real Debian root, mounted as on a booted node, with its own sshd on a port of loopback.

Layers, overlay, /run/vnfs and a file system of the node's own at /home lie in a mount namespace of one process tree;
when that ends, so do they.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.capsules import configuration
from tests.support.ports import free_port
from tests.support.program import VNFS
from vnfsbuild.config import data_directory
from vnfsbuild.hybrid.policy import profile
from vnfsbuild.store.capsules import Store
from vnfsbuild.store.manifest import Capsule, State
from vnfsbuild.store.toc import Toc, scan

REPOSITORY = Path(__file__).parents[2]
CACHE = Path(tempfile.gettempdir()) / "vnfs-test-cache"
_LEAN = ("doc", "locale", "man", "i18n", "info", "zoneinfo", "perl", "perl5")


def call(*argv: str | Path, **options: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([str(word) for word in argv], check=True, capture_output=True, **options)  # type: ignore[call-overload, no-any-return]


def base_root() -> Path:
    """A tar of a small Debian 12 with sshd and rsync, made once, from mmdebstrap's mirror or VNFS_MIRROR_DEBIAN."""
    path = CACHE / "livesync-node-12.tar"
    if not path.exists():
        CACHE.mkdir(exist_ok=True)
        temporary = path.with_name(f"{secrets.token_hex(6)}.tar")
        mirror = [os.environ["VNFS_MIRROR_DEBIAN"]] if os.environ.get("VNFS_MIRROR_DEBIAN") else []
        packages = "--include=openssh-server,rsync,systemd-sysv,dbus"
        call("mmdebstrap", "--variant=minbase", packages, "bookworm", temporary, *mirror)
        temporary.rename(path)
    return path


def unpack_root(at: Path) -> Path:
    at.mkdir(parents=True)
    call("tar", "-C", at, "--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf", base_root())
    for name in _LEAN:
        shutil.rmtree(at / "usr/share" / name, ignore_errors=True)
    for place in ("dev", "run", "var/cache/apt", "var/lib/apt/lists"):
        shutil.rmtree(at / place, ignore_errors=True)
        (at / place).mkdir(parents=True)
    for key in (at / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    return at


def publish(store: Store, tree: Path, scratch: Path, *, kernel: bytes = b"kernel", name: str = "compute") -> Capsule:
    """Publish a directory as the next version of `name`, as one layer."""
    image = scratch / f"{secrets.token_hex(6)}.squashfs"
    call("mksquashfs", tree, image, "-comp", "zstd", "-Xcompression-level", "1", "-noappend", "-no-progress", "-quiet")
    blobs = store.blobs
    toc = scan(tree)
    config = configuration(name, toc, state=State(livesync_skip=SKIP))
    with open(image, "rb") as stream:
        layer = blobs.put(stream)
    image.unlink()
    parts = {"kernel": blobs.put_bytes(kernel), "initrd": blobs.put_bytes(b"initrd")}
    return store.publish(config, layers=[layer], toc=blobs.put_bytes(toc.dump()), sbom=blobs.put_bytes(b"{}"), **parts)


# What comes with vnfs, and one of the tests' own. Without /home: that is protected by being a mount.
_LIST = profile("stateless", data_directory("capsules")).livesync_skip
SKIP = (*(pattern for pattern in _LIST if pattern != "/home"), "/etc/kept")


_BOOT = """
set -e
mount --make-rprivate /
cd "$1"
mkdir -p run root
mount -t tmpfs -o mode=755 run run
mkdir -p run/vnfs/layers/0 run/vnfs/rw run/sshd
mount -t squashfs -o loop,ro "$2" run/vnfs/layers/0
mount -t tmpfs -o size=1G,mode=755 rw run/vnfs/rw
mkdir run/vnfs/rw/upper run/vnfs/rw/work
lower=run/vnfs/layers/0,upperdir=run/vnfs/rw/upper,workdir=run/vnfs/rw/work
mount -t overlay -o "lowerdir=$lower,redirect_dir=off,metacopy=off" root root
mount --rbind run root/run
mount -t proc proc root/proc
mount -t tmpfs dev root/dev
for name in null zero urandom random tty full; do touch root/dev/$name; mount --bind /dev/$name root/dev/$name; done
mount -t tmpfs home root/home
echo mine > root/home/mine
cp "$3" run/vnfs/provenance.json
mkdir -p -m 700 root/root/.ssh
cp "$1/key.pub" root/root/.ssh/authorized_keys
cp "$1/host_key" root/etc/ssh/ssh_host_ed25519_key
cp "$1/host_key.pub" root/etc/ssh/ssh_host_ed25519_key.pub
sshd="/usr/sbin/sshd -D -e -p $4 -o ListenAddress=127.0.0.1 -o HostKey=/etc/ssh/ssh_host_ed25519_key -o MaxSessions=20"
if [ "$5" = sshd ]; then
    exec chroot root $sshd -o UsePAM=no
fi
mount -t sysfs -o ro sysfs root/sys
mount -t cgroup2 cgroup2 root/sys/fs/cgroup
mkdir root/dev/pts root/dev/shm
mount -t devpts -o newinstance devpts root/dev/pts
mkdir -p run/systemd/system/ssh.service.d
printf '[Service]\\nExecStart=\\nExecStart=%s\\n' "$sshd" > run/systemd/system/ssh.service.d/port.conf
cd root
path=/usr/sbin:/usr/bin:/sbin:/bin
exec env -i container=vnfs PATH=$path chroot . /lib/systemd/systemd --system --log-target=console
"""
_GROUPS = next(path for path in (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")) if path.is_dir())


@dataclass
class LiveNode:
    """A running node and the way to it."""

    directory: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def word(self) -> str:
        return f"root@127.0.0.1:{self.port}"

    @property
    def identity(self) -> Path:
        return self.directory / "key"

    @property
    def known_hosts(self) -> Path:
        return self.directory / "known_hosts"

    @property
    def inside(self) -> int:
        """The number of the node's first process, as the host sees it."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0])

    @property
    def root(self) -> Path:
        """The node's root as it sees it, from outside: for looking at, by other means than ssh."""
        return Path(f"/proc/{self.process.pid}/root{self.directory}/root")

    def sh(self, script: str, *, check: bool = True) -> str:
        """Run a script on the node as root, over ssh."""
        argv = [
            "ssh",
            "-T",
            "-i",
            self.identity,
            "-o",
            "IdentitiesOnly=yes",
            "-p",
            str(self.port),
            "-o",
            "BatchMode=yes",
        ]
        argv += ["-o", f"UserKnownHostsFile={self.known_hosts}", "root@127.0.0.1", "set -e; " + script]
        done = subprocess.run([str(word) for word in argv], check=False, capture_output=True, timeout=60)
        assert not check or done.returncode == 0, done.stderr.decode(errors="replace")
        return done.stdout.decode(errors="surrogateescape")

    def provenance(self) -> dict[str, object]:
        return dict(json.loads((self.root / "run/vnfs/provenance.json").read_text()))

    def toc(self) -> Toc:
        return scan(self.root)


@contextmanager
def live_node(directory: Path, store: Store, capsule: Capsule, *, init: str = "sshd") -> Iterator[LiveNode]:
    """Boot a node from a capsule of one layer: only sshd, or with `init` "systemd" everything, in a control group."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("key", "host_key"):
        call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / name)
    port = free_port()
    host_key = (directory / "host_key.pub").read_text()
    (directory / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}")
    record = {"capsule": capsule.config.name, "version": capsule.config.version, "manifest": capsule.digest}
    record |= {
        "tree": capsule.config.tree,
        "layers": [blob.digest for blob in capsule.layers],
        "node": "52:54:00:12:34:56",
    }
    (directory / "provenance.json").write_text(json.dumps(record))
    layer = store.layer_paths(capsule)[0]
    group = _GROUPS / f"vnfs-test-{secrets.token_hex(6)}"
    argv = ["unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child"]
    if init == "systemd":
        group.mkdir()
        argv = ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh", *argv, "--cgroup"]
    argv += ["sh", "-c", _BOOT, "sh", str(directory), str(layer), str(directory / "provenance.json"), str(port), init]
    with open(directory / "log", "wb") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True)
    try:
        node = LiveNode(directory, port, process)
        _wait(lambda: _answers(port) or process.poll() is not None, "sshd on the node")
        assert process.poll() is None, (directory / "log").read_text()
        yield node
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if init == "systemd":
            _wait(lambda: _remove_group(group), "end of the node's control group")


def _remove_group(group: Path) -> bool:
    try:
        for place, _, _ in os.walk(group, topdown=False):
            Path(place).rmdir()
    except OSError:
        return False
    return True


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as probe:
            return probe.recv(4) == b"SSH-"
    except OSError:
        return False


def _wait(condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"no {what} in {seconds} s"
        time.sleep(0.05)


@dataclass(frozen=True)
class Answer:
    code: int
    output: str
    errors: str

    @property
    def json(self) -> list[dict[str, object]]:
        return list(json.loads(self.output))


@dataclass(frozen=True)
class Site:
    """A server with a store, from which the real command line runs."""

    store: Store
    work: Path

    def argv(self, command: str, *words: str, key: LiveNode | None = None) -> list[str]:
        argv = [
            *VNFS,
            "--store",
            str(self.store.root),
            "--work",
            str(self.work),
            command,
            *words,
        ]
        if key:
            argv += ["--identity", str(key.identity), "--known-hosts", str(key.known_hosts)]
        return argv

    def vnfs(self, command: str, *words: str, key: LiveNode | None = None) -> Answer:
        argv = self.argv(command, *words, key=key)
        done = subprocess.run(argv, check=False, capture_output=True, cwd=REPOSITORY, timeout=300)
        return Answer(done.returncode, done.stdout.decode(), done.stderr.decode())

    def leftovers(self) -> list[str]:
        """Mounts and scratch directories that should be gone."""
        mounts = re.findall(re.escape(str(self.work)) + r"\S*", Path("/proc/self/mountinfo").read_text())
        return mounts + [str(path) for path in self.work.glob("*/*")]
