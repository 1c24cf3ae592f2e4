"""The main job on real input, end to end: recipe, lock, build, edit, move, boot, livesync, drift.

Every step is a command an administrator could type; it is printed before it runs, and checked after. The last thing
printed is a table of what took how long and made how many bytes.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT))

from tests.support.ports import free_port  # noqa: E402
from tests.support.registry import running_registry  # noqa: E402

VNFS = Path(sys.executable).with_name("vnfs")
PLACE = Path(os.environ.get("VNFS_DEMO_DIR", "/var/tmp/vnfs-demo"))
BOOT_PATIENCE = 300


@dataclass
class Row:
    step: str
    seconds: float
    size: int = 0


class Demo:
    """Runs commands against one store, and keeps the table."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.rows: list[Row] = []
        self.env = os.environ | {
            "VNFS_STORE": str(place / "store"),
            "VNFS_CACHE": str(place / "cache"),
            "VNFS_WORK": str(place / "work"),
        }

    def vnfs(self, *words: str | Path, store: Path | None = None, expect: int = 0, quiet: bool = False) -> str:
        """Run vnfs; show what it answers; fail the demo when it answers another exit code than expected."""
        head = ["--store", str(store)] if store else []
        argv = [str(VNFS), *head, *map(str, words)]
        print(f"\n$ {shlex.join(['vnfs', *argv[1:]])}", flush=True)
        done = subprocess.run(argv, env=self.env, stdout=subprocess.PIPE, text=True, check=False)
        if not quiet:
            print(done.stdout, end="", flush=True)
        if done.returncode != expect:
            sys.exit(f"demo: that answered {done.returncode}, not {expect}")
        return done.stdout

    @contextmanager
    def step(self, title: str) -> Iterator[Row]:
        print(f"\n=== {title}", flush=True)
        row = Row(title, time.monotonic())
        yield row
        row.seconds = time.monotonic() - row.seconds
        self.rows.append(row)

    def table(self) -> str:
        lines = [f"{'STEP':<44} {'SECONDS':>8} {'BYTES':>12}"]
        lines += [f"{row.step:<44} {row.seconds:>8.1f} {row.size or '':>12}" for row in self.rows]
        lines.append(f"{'all of it':<44} {sum(row.seconds for row in self.rows):>8.1f}")
        return "\n".join(lines)


def main() -> None:
    """Run it all; what an earlier run left in the place is removed first, the downloads excepted."""
    for name in ("store", "work", "import", "pull", "damaged"):
        shutil.rmtree(PLACE / name, ignore_errors=True)
    PLACE.mkdir(parents=True, exist_ok=True)
    demo = Demo(PLACE)
    build(demo)
    edit(demo)
    move(demo)
    refuse_damage(demo)
    boot_and_livesync(demo)
    print(f"\n{demo.table()}\n\ncapsules: {PLACE}/store   file: {PLACE}/compute.vnfs   console: {PLACE}/console.log")


def build(demo: Demo) -> None:
    recipe = demo.place / "compute.toml"
    recipe.write_text('name = "compute"\nextends = ["debian-12-compute.toml"]\n')
    with demo.step("lock") as row:
        demo.vnfs("lock", recipe, "--update")
        row.size = recipe.with_suffix(".lock").stat().st_size
    with demo.step("build") as row:
        demo.vnfs("build", recipe, "--locked")
        row.size = json.loads(demo.vnfs("show", "compute", "--json", quiet=True))["size"]
    with demo.step("look: list, show, history, verify"):
        for words in (["list"], ["show", "compute:1"], ["history", "compute"], ["verify", "compute"]):
            demo.vnfs(*words)


def edit(demo: Demo) -> None:
    root = demo.place / "mnt"
    with demo.step("mount"):
        demo.vnfs("mount", "compute", "--at", root)
    with demo.step("shell: apt-get install tree"):
        demo.vnfs("shell", "compute", "--", "apt-get", "install", "-y", "tree")
    with demo.step("edit by hand"):
        (root / "etc/motd").write_text("This node runs version 2.\n")
        (root / "etc/issue.net").unlink()
        (root / "usr/bin/less").chmod(0o750)
        subprocess.run(["setcap", "cap_net_raw+ep", str(root / "usr/bin/rsync")], check=True)
    with demo.step("umount: publish version 2") as row:
        demo.vnfs("umount", "compute", "-m", "tree, a message of the day, rsync may use raw sockets")
        row.size = json.loads(demo.vnfs("show", "compute:2", "--json", quiet=True))["layers"][-1]["size"]
    with demo.step("diff"):
        demo.vnfs("diff", "compute:1", "compute:2")


def move(demo: Demo) -> None:
    file = demo.place / "compute.vnfs"
    digest = json.loads(demo.vnfs("show", "compute", "--json", quiet=True))["digest"]

    def same(store: Path) -> None:
        got = json.loads(demo.vnfs("show", "compute", "--json", store=store, quiet=True))["digest"]
        if got != digest:
            sys.exit(f"demo: {store} holds {got}, not {digest}")

    with demo.step("export") as row:
        demo.vnfs("export", "compute", file, "--force")
        row.size = file.stat().st_size
    with demo.step("import into another store"):
        demo.vnfs("import", file, store=demo.place / "import")
        same(demo.place / "import")
    with running_registry(demo.place / "registry") as registry:
        with demo.step("push version 1, then 2"):
            demo.vnfs("push", "compute:1", f"{registry}/lab/compute")
            demo.vnfs("push", "compute:2", f"{registry}/lab/compute")
        with demo.step("pull version 1, then 2, into a third store"):
            demo.vnfs("pull", f"{registry}/lab/compute:1", store=demo.place / "pull")
            demo.vnfs("pull", f"{registry}/lab/compute:2", store=demo.place / "pull")
            same(demo.place / "pull")
    shutil.rmtree(demo.place / "registry", ignore_errors=True)


def refuse_damage(demo: Demo) -> None:
    """One flipped byte in the layer: the node must not boot it, and must say why."""
    damaged, console = demo.place / "damaged", demo.place / "console-damaged.log"
    shutil.copytree(demo.place / "store", damaged, copy_function=os.link, ignore=shutil.ignore_patterns("work"))
    layer = json.loads(demo.vnfs("show", "compute:1", "--json", quiet=True))["layers"][0]["digest"]
    blob = damaged / "blobs/sha256" / layer.removeprefix("sha256:")
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.unlink()
    blob.write_bytes(data)
    with demo.step("a damaged layer is refused by the node"):
        demo.vnfs("boot", "compute:1", "--until", "login", "--console", console, store=damaged, expect=1)
        said = [line for line in console.read_text(errors="replace").splitlines() if "refusing" in line]
        if not said:
            sys.exit("demo: the node did not say why it refused")
        print(f"console: {said[-1].strip()}")
    shutil.rmtree(damaged)


def boot_and_livesync(demo: Demo) -> None:
    key, port, console = demo.place / "key", free_port(), demo.place / "console.log"
    if not key.exists():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    known = demo.place / "known_hosts"
    known.unlink(missing_ok=True)
    console.unlink(missing_ok=True)
    node = f"root@127.0.0.1:{port}"
    ssh = ["ssh", "-i", str(key), "-p", str(port), "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=accept-new"]
    ssh += ["-o", f"UserKnownHostsFile={known}", "root@127.0.0.1"]
    reach = ["--identity", key, "--known-hosts", known]

    def on_node(text: str, *, patiently: bool = False) -> str:
        done = subprocess.run([*ssh, text], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        if patiently and done.returncode:  # it is still booting; what ssh says of that is no news
            return ""
        print(f"node$ {text}\n{done.stdout}{done.stderr}", end="", flush=True)
        return done.stdout if done.returncode == 0 else ""

    words = ["boot", "compute:1", "--ssh-key", f"{key}.pub", "--ssh-port", str(port), "--console", str(console)]
    print(f"\n$ {shlex.join(['vnfs', *words])} &", flush=True)
    with demo.step("boot version 1 to ssh"):
        machine = subprocess.Popen([str(VNFS), *words], env=demo.env, stdin=subprocess.DEVNULL)
        wait(
            lambda: machine.poll() is None,
            lambda: "compute" in on_node("cat /run/vnfs/provenance.json", patiently=True),
        )
    try:
        with demo.step("livesync --plan"):
            demo.vnfs("livesync", "compute", node, "--plan", *reach)
        with demo.step("livesync to version 2"):
            demo.vnfs("livesync", "compute", node, *reach)
        with demo.step("check on the node"):
            facts = on_node(
                "tree --version; cat /etc/motd; test -e /etc/issue.net || echo gone; stat -c %a /usr/bin/less"
            )
            if not all(word in facts for word in ("tree v", "version 2", "gone", "750")):
                sys.exit("demo: the node is not as version 2 says")
        with demo.step("status: no drift"):
            demo.vnfs("status", node, *reach)
        with demo.step("status: drift is named"):
            on_node("echo changed by hand >> /etc/motd")
            if "/etc/motd" not in demo.vnfs("status", node, *reach, expect=3):
                sys.exit("demo: status did not name the file that was changed")
    finally:
        print("\n=== end the node, as Ctrl-C does", flush=True)
        machine.terminate()
        machine.wait(20)


def wait(alive: Callable[[], bool], ready: Callable[[], bool]) -> None:
    until = time.monotonic() + BOOT_PATIENCE
    while not ready():
        if not alive() or time.monotonic() > until:
            sys.exit("demo: the node did not come up; see the console")
        time.sleep(3)


if __name__ == "__main__":
    main()
