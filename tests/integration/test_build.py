"""Building, offline: from a signed mirror to a capsule; what goes wrong is said in words and leaves nothing behind."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from datetime import timedelta
from pathlib import Path

import pytest

import vnfsbuild
from tests.support.aptrepo import Deb, Signer
from tests.support.minidistro import RELEASE, Site
from vnfsbuild.config import data_directory

pytestmark = pytest.mark.root


def listing(site: Site, reference: str = "mini") -> dict[str, str]:
    """Path to "mode owner" of a capsule's first layer, as unsquashfs sees it."""
    layers = site.json("show", reference)["layers"]
    image = site.place / "store/blobs/sha256" / layers[0]["digest"].removeprefix("sha256:")  # type: ignore[index]
    text = subprocess.run(["unsquashfs", "-lln", str(image)], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 5) for line in text.splitlines() if line[:1] in "dl-cbps" and "squashfs-root" in line]
    return {row[5].removeprefix("squashfs-root").split(" -> ")[0] or "/": f"{row[0]} {row[1]}" for row in rows}


def read(site: Site, path: str, reference: str = "mini") -> bytes:
    layers = site.json("show", reference)["layers"]
    image = site.place / "store/blobs/sha256" / layers[-1]["digest"].removeprefix("sha256:")  # type: ignore[index]
    return subprocess.run(["unsquashfs", "-cat", str(image), path], capture_output=True, check=True).stdout


def test_a_recipe_becomes_a_capsule_whose_packages_are_the_lock(site: Site) -> None:
    hello = Deb("hello", "2.0", depends="mini-base", files={"usr/bin/hello": (0o755, b"#!/bin/sh\necho hello\n")},
                scripts={"postinst": "#!/bin/sh\nset -e\necho configured > /etc/hello.state\n"})  # fmt: skip
    site.publish(hello)
    report = site.json("build", site.recipe(include='"mini-kernel", "hello"'))
    assert report["reference"] == "mini:1"
    assert report["kernel"] == RELEASE
    tree = site.place / "tree"
    layer = report["layers"][0]["digest"].removeprefix("sha256:")  # type: ignore[index]
    image = site.place / "store/blobs/sha256" / layer
    subprocess.run(["unsquashfs", "-q", "-n", "-d", str(tree), str(image)], check=True, capture_output=True)
    assert (tree / "etc/hello.state").read_text() == "configured\n"
    dpkg = ["dpkg", "--root", str(tree)]
    assert subprocess.run([*dpkg, "--audit"], capture_output=True, check=True).stdout == b""
    query = ["dpkg-query", f"--admindir={tree}/var/lib/dpkg", "-W", "-f", "${Package} ${Version} ${db:Status-Status}\n"]
    assert subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines() == [
        "hello 2.0 installed",
        "mini-base 1.0 installed",
        "mini-kernel 6.1 installed",
    ]
    assert site.is_clean()


def test_the_same_recipe_and_lock_give_the_same_capsule_on_any_host(site: Site) -> None:
    recipe = site.recipe('[[hook]]\nphase = "post"\nscript = "echo x > /etc/x"')
    first = site.json("build", recipe)
    assert site.json("build", recipe)["published"] is False
    other = {"VNFS_STORE": str(site.place / "other"), "TZ": "Asia/Tokyo", "LC_ALL": "C", "SOURCE_DATE_EPOCH": "1"}
    command = ["sh", "-c", 'umask 077; exec "$@"', "sh", *site.command("build", recipe, "--json")]
    done = subprocess.run(command, env=site.environment() | other, capture_output=True, text=True, check=True)
    second = json.loads(done.stdout)
    assert second["tree"] == first["tree"]
    assert second["layers"] == first["layers"]


def test_what_is_one_machine_s_own_is_not_in_the_capsule(site: Site) -> None:
    site.json("build", site.recipe())
    paths = listing(site)
    assert read(site, "etc/machine-id") == b""
    assert "/var/log/dpkg.log" not in paths
    assert "/usr/sbin/policy-rc.d" not in paths
    assert not [path for path in paths if path.startswith(("/run/", "/dev/", "/proc/", "/sys/", "/tmp/"))]
    assert paths["/"] == "drwxr-xr-x 0/0"
    assert paths["/tmp"].startswith("drwxrwxrwt")


def test_hooks_run_inside_in_their_phase_with_their_options_and_without_a_network(site: Site) -> None:
    (site.place / "hooks").mkdir()
    hook = site.place / "hooks" / "note"
    hook.write_text('#!/bin/sh\necho "$VNFS_PHASE $WORD $(ls /var/lib/dpkg/info/*.list | wc -l)" >> /etc/notes\n')
    hook.chmod(0o755)
    hook.with_suffix(".toml").write_text('summary = "x"\n[options.WORD]\ndefault = "plain"\n')
    site.json(
        "build",
        site.recipe(
            '[[hook]]\nphase = "pack"\nrun = "note"\n'
            '[[hook]]\nphase = "post"\nrun = "note"\nenv = { WORD = "said" }\n'
            '[[hook]]\nphase = "pre"\nrun = "note"\n'
            '[[hook]]\nphase = "post"\nscript = "cat /proc/net/dev | grep -c : > /etc/interfaces"\n'
        ),
    )
    notes = read(site, "etc/notes").decode().splitlines()
    assert notes == ["pre plain 0", "post said 2", "pack plain 2"]
    assert read(site, "etc/interfaces") == b"1\n", "loopback alone"


def test_a_file_tree_is_laid_over_the_root_and_cannot_leave_it(site: Site) -> None:
    tree = site.place / "overlay"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/motd").write_text("hello\n")
    (tree / "out").mkdir()
    (tree / "out/escaped").write_text("x")
    target = site.place / "outside"
    target.mkdir()
    link = Deb("link", files={"out": str(target)})
    site.publish(link)
    text = '[files]\ncopy = ["overlay"]'
    site.json("build", site.recipe(text, include='"mini-kernel", "link"'))
    assert list(target.iterdir()) == []
    assert read(site, "etc/motd") == b"hello\n"
    assert site.is_clean()


def test_capabilities_and_hard_links_survive_packing(site: Site) -> None:
    scripts = {"postinst": "#!/bin/sh\nset -e\nln /usr/bin/tool /usr/bin/tool-too\nchmod 4755 /usr/bin/setuid\n"}
    tool = Deb("tool", files={"usr/bin/tool": (0o755, b"x" * 5000), "usr/bin/setuid": (0o755, b"y")}, scripts=scripts)
    site.publish(tool)
    report = site.json("build", site.recipe(include='"mini-kernel", "tool"'))
    assert report["losses"] == []
    assert listing(site)["/usr/bin/setuid"].startswith("-rwsr-xr-x")
    toc = site.place / "toc"
    layer = report["layers"][0]["digest"].removeprefix("sha256:")  # type: ignore[index]
    image = site.place / "store/blobs/sha256" / layer
    subprocess.run(["unsquashfs", "-q", "-n", "-d", str(toc), str(image)], check=True, capture_output=True)
    assert (toc / "usr/bin/tool").samefile(toc / "usr/bin/tool-too")


# ---- what goes wrong


def failing(script: str) -> str:
    return f'[[hook]]\nphase = "post"\nscript = """\n{script}\n"""\n'


WRONG_RECIPES = [
    # summary, recipe text, include, words of the error
    ("an unknown package", "", '"mini-kernal"', ["mini-kernal", "mini-kernel"]),
    ("a set that cannot be", "", '"mini-kernel", "needy"', ["needy", "nowhere"]),
    (
        "a hook that fails",
        failing("echo on fire; exit 7"),
        '"mini-kernel"',
        ["post hook", "on fire", "7", "vnfs build"],
    ),
    ("a hook that is not there", '[[hook]]\nphase = "pre"\nrun = "nohook"', '"mini-kernel"', ["nohook"]),
    ("a root without a kernel", "", "", ["kernel"]),
    ("a postinst that fails", "", '"mini-kernel", "broken"', ["broken", "dpkg"]),
    ("a budget that is too small", '[budget]\nsize = "1K"', '"mini-kernel"', ["budget"]),
    ("an unknown key", "[packages.x]", '"mini-kernel"', ["packages.x"]),
]


@pytest.mark.parametrize(("summary", "text", "include", "words"), WRONG_RECIPES)
def test_an_error_in_a_recipe_is_said_and_leaves_nothing(
    site: Site, summary: str, text: str, include: str, words: list[str]
) -> None:
    needy = Deb("needy", depends="nowhere (>= 2)")
    broken = Deb("broken", scripts={"postinst": "#!/bin/sh\necho very broken\nexit 1\n"})
    site.publish(needy, broken)
    done = site.run("build", site.recipe(text, include=include), code=1)
    for word in words:
        assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert site.is_clean()


def test_a_wrong_signature_is_final(site: Site, tmp_path_factory: pytest.TempPathFactory) -> None:
    stranger = Signer(tmp_path_factory.mktemp("stranger") / "gnupg", name="Stranger")
    try:
        site.keyring = stranger.keyring
        done = site.run("build", site.recipe(), code=1)
    finally:
        stranger.close()
    assert "InRelease" in done.stderr
    assert site.mirror.count("/dists/bookworm/InRelease") == 1, "trust is not retried"
    assert site.is_clean()


def test_an_expired_release_says_when(site: Site) -> None:
    site.publish(valid=timedelta(days=-1))
    assert "expired" in site.run("build", site.recipe(), code=1).stderr
    assert site.is_clean()


def test_a_package_with_other_bytes_is_refused_and_not_asked_for_again(site: Site) -> None:
    recipe = site.recipe()
    site.run("lock", recipe)
    path = f"/pool/{kernel_file(site)}"
    data = (site.place / "mirror" / path.lstrip("/")).read_bytes()
    site.mirror.replace[path] = data[:-1] + bytes([data[-1] ^ 1])
    before = site.mirror.count(path)
    done = site.run("build", recipe, "--locked", code=1)
    assert "mini-kernel" in done.stderr
    assert site.mirror.count(path) == before + 1
    assert site.is_clean()


def kernel_file(site: Site) -> str:
    return next((site.place / "mirror/pool").glob("mini-kernel_*")).name


def test_a_download_that_breaks_off_goes_on_where_it_stopped(site: Site) -> None:
    site.mirror.cut[f"/pool/{kernel_file(site)}"] = [100]
    site.json("build", site.recipe())
    ranges = [asked for path, asked in site.mirror.requests if kernel_file(site) in path]
    assert ranges[1] == "bytes=100-"


def test_a_mirror_that_is_gone_is_named(site: Site) -> None:
    recipe = site.recipe()
    site.run("lock", recipe)
    path = f"/pool/{kernel_file(site)}"
    site.mirror.fail[path] = [404] * 20
    assert site.mirror.url + path in site.run("build", recipe, code=1).stderr
    assert site.is_clean()


def test_a_damaged_lock_is_made_anew_and_refused_where_it_must_hold(site: Site) -> None:
    recipe = site.recipe()
    path = recipe.with_suffix(".lock")
    for words in (["lock"], ["lock", "--update"], ["build"]):
        path.write_text("garbage")
        assert "is not a lock" in site.run("build", recipe, "--locked", code=1).stderr
        site.run(*words, recipe)
        assert "mini-kernel" in path.read_text()


def test_a_stale_lock_is_an_answer_of_its_own(site: Site) -> None:
    recipe = site.recipe()
    site.run("build", recipe, "--locked", code=3)
    site.run("lock", recipe)
    site.run("lock", recipe, "--check")
    site.publish(Deb("hello"))
    changed = site.recipe(include='"mini-kernel", "hello"')
    site.run("lock", changed, "--check", code=3)
    site.run("build", changed, "--locked", code=3)
    assert site.is_clean()


def test_without_root_it_says_what_works(site: Site) -> None:
    recipe = site.recipe()
    site.place.chmod(0o777)
    for path in [site.place, *site.place.parents][:4]:
        path.chmod(path.stat().st_mode | 0o055)
    command = ["setpriv", "--reuid=65534", "--clear-groups", *site.command("build", recipe)]
    done = subprocess.run(command, env=site.environment() | {"HOME": "/"}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "needs root" in done.stderr
    assert "lock" in done.stderr


def test_a_missing_program_says_how_to_install_it(site: Site) -> None:
    """A namespace in which mksquashfs is an empty directory: the program is not there."""
    recipe = site.recipe()
    hide = 'mount -t tmpfs none /mnt && touch /mnt/x && mount --bind /mnt/x "$(command -v mksquashfs)" && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", hide, "sh", *site.command("build", recipe)]
    done = subprocess.run(command, env=site.environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "mksquashfs" in done.stderr
    assert "apt-get install squashfs-tools" in done.stderr
    assert site.is_clean()


@pytest.mark.parametrize("which", ["store", "cache"])
def test_a_full_disk_is_said_and_loses_nothing(site: Site, which: str) -> None:
    recipe = site.recipe()
    site.json("build", recipe)
    before = site.run("list", "--json").stdout
    again = site.recipe('[[hook]]\nphase = "post"\nscript = "head -c 3000000 /dev/urandom > /etc/noise"')
    place = site.place / "small"
    place.mkdir()
    size = 2 << 20
    if which == "store":
        size += sum(path.stat().st_size + 4096 for path in (site.place / "store").rglob("*"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "small", place], check=True)
    try:
        if which == "store":
            subprocess.run(["cp", "-a", str(site.place / "store"), str(place / "store")], check=True)
        done = site.run("build", again, code=1, env={f"VNFS_{which.upper()}": str(place / which)})
    finally:
        subprocess.run(["umount", place], check=True)
    assert "no space" in done.stderr
    assert site.run("list", "--json").stdout == before
    assert site.is_clean()


def test_what_was_built_before_an_error_is_told_with_it(site: Site) -> None:
    good, bad = site.recipe(name="good"), site.recipe(include='"no-such-package"', name="bad")
    said = site.json("build", good, bad, code=1)
    assert [item["reference"] for item in said["done"]] == ["good:1"]  # type: ignore[attr-defined]
    assert "no-such-package" in said["error"]["message"]  # type: ignore[index]
    assert "done" not in site.json("build", bad, good, code=1)


def test_two_builds_at_once_both_publish(site: Site) -> None:
    recipes = [site.recipe(f'[[hook]]\nphase = "post"\nscript = "echo {name} > /etc/name"', name=name) for name in "ab"]
    threads = [threading.Thread(target=site.json, args=("build", recipe)) for recipe in recipes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = {row["name"] for row in json.loads(site.run("list", "--json").stdout)}
    assert names == {"a", "b"}
    assert site.is_clean()


def test_the_root_of_a_failed_build_can_be_kept(site: Site) -> None:
    kept = site.place / "kept"
    site.run("build", site.recipe(failing("touch /etc/reached; exit 1")), "--keep-failed", kept, code=1)
    assert (kept / "etc/reached").exists()


def test_daemons_do_not_start_and_initrds_are_not_made_while_packages_are_configured(site: Site) -> None:
    scripts = {
        "postinst": "#!/bin/sh\nset -e\nstart-stop-daemon --start --exec /usr/bin/touch -- /etc/started\n"
        "/usr/sbin/policy-rc.d x start || echo $? > /etc/policy\nupdate-initramfs -u\n"
    }
    daemon = Deb("daemon", depends="tools", scripts=scripts)
    program = b"#!/bin/sh\ntouch /etc/initramfs-made\n"
    site.publish(daemon, Deb("tools", files={"usr/sbin/update-initramfs": (0o755, program)}))
    site.json("build", site.recipe(include='"mini-kernel", "daemon"'))
    paths = listing(site)
    assert "/etc/started" not in paths
    assert "/etc/initramfs-made" not in paths
    assert read(site, "etc/policy") == b"101\n"
    assert read(site, "usr/sbin/update-initramfs") == program


def test_scripts_see_a_root_that_is_no_running_system(site: Site) -> None:
    """Else the C library's script asks init to start anew, and sleeps; sshd's makes keys that all nodes would share."""
    postinst = (
        "#!/bin/sh\nset -e\nif ischroot; then echo chroot > /etc/answer; fi\ninvoke-rc.d daemon start\n"
        "[ -f /etc/ssh/ssh_host_rsa_key ] || touch /etc/made-a-key\necho mine > /etc/ssh/ssh_host_ed25519_key\n"
    )
    programs = {
        "usr/bin/ischroot": (0o755, b"#!/bin/sh\nexit 1\n"),
        "usr/sbin/invoke-rc.d": (0o755, b"#!/bin/sh\ntouch /etc/started\n"),
        "etc/ssh/sshd_config": (0o644, b"# ours\n"),
    }
    site.publish(Deb("sshd", depends="tools", scripts={"postinst": postinst}), Deb("tools", files=programs))
    hook = '[[hook]]\nphase = "post"\nscript = "cat /etc/ssh/ssh_host_ed25519_key > /etc/kept"'
    site.json("build", site.recipe(hook, include='"mini-kernel", "sshd"'))
    assert read(site, "etc/answer") == b"chroot\n"
    assert read(site, "etc/kept") == b"mine\n", "what a package itself wrote is not ours to remove"
    paths = listing(site)
    assert not {"/etc/started", "/etc/made-a-key"} & set(paths)
    assert "/etc/ssh/sshd_config" in paths
    assert not [path for path in paths if "ssh_host_" in path]
    assert read(site, "usr/bin/ischroot") == programs["usr/bin/ischroot"][1]


def test_packages_are_unpacked_after_what_they_pre_depend_on_is_configured(site: Site) -> None:
    early = Deb("early", scripts={"postinst": "#!/bin/sh\necho ready > /etc/early\n"})
    late = Deb(
        "late", pre_depends="early", depends="sibling", scripts={"preinst": "#!/bin/sh\ncat /etc/early > /etc/late\n"}
    )
    site.publish(early, late, Deb("sibling", depends="late"), Deb("third", pre_depends="late"))
    site.json("build", site.recipe(include='"mini-kernel", "third"'))
    assert read(site, "etc/late") == b"ready\n"


def test_progress_can_be_read_by_a_machine(site: Site) -> None:
    done = site.run("build", site.recipe(), "--progress", "json")
    events = [json.loads(line) for line in done.stderr.splitlines()]
    ended = [event["step"] for event in events if event["event"] == "end"]
    assert ended[-1] == "publish"
    assert all(event["error"] == "" for event in events if event["event"] == "end")


def test_errors_can_be_read_by_a_machine(site: Site) -> None:
    answer = site.json("build", site.place / "nothing.toml", code=1)
    assert answer["error"]["ref"] == "not-found"  # type: ignore[index]


def test_a_tag_is_given_to_the_version_that_is_there_when_nothing_changed(site: Site) -> None:
    path = site.recipe()
    site.publish()
    site.run("build", path)
    report = site.json("build", path, "--tag", "stable")
    assert report["published"] is False
    assert site.json("show", "mini:stable")["reference"] == "mini:1"
    assert site.json("show", "mini")["tags"] == ["stable"]


def test_several_recipes_are_answered_by_one_json_document(site: Site) -> None:
    site.publish()
    answer = site.json("build", site.recipe(), site.recipe(name="other"))
    assert [report["reference"] for report in answer] == ["mini:1", "other:1"]  # type: ignore[index]


def test_the_lock_of_an_installed_recipe_lies_in_the_store(site: Site, tmp_path: Path) -> None:
    package = tmp_path / "site-packages"
    shutil.copytree(Path(vnfsbuild.__file__).parent, package / "vnfsbuild", ignore=shutil.ignore_patterns("data"))
    for kind in ("recipes", "hooks", "capsules"):
        shutil.copytree(
            data_directory(kind), package / "vnfsbuild/data" / kind, ignore=shutil.ignore_patterns("*.lock")
        )
    site.publish()
    shutil.copy(site.recipe(), package / "vnfsbuild/data/recipes/mini.toml")
    site.env |= {"PYTHONPATH": str(package), "PYTHONSAFEPATH": "1"}
    before = sorted((package / "vnfsbuild/data").rglob("*"))
    answer = site.json("lock", "mini")
    assert answer["lock"] == str(site.place / "store/locks/mini.lock")
    assert site.json("lock", "mini", "--check")["digest"] == answer["digest"]
    assert sorted((package / "vnfsbuild/data").rglob("*")) == before


def test_a_lock_that_cannot_be_written_is_an_error_and_a_build_goes_on_without(site: Site) -> None:
    site.publish()
    place = site.place / "read-only"
    place.mkdir()
    shutil.copy(site.recipe(), place / "mini.toml")
    subprocess.run(["mount", "--bind", "-o", "ro", place, place], check=True)
    try:
        assert "cannot write the lock" in site.run("lock", place / "mini.toml", code=1).stderr
        assert "holds for this run" in site.run("build", place / "mini.toml").stderr
    finally:
        subprocess.run(["umount", place], check=True)
