"""Building, interrupted at any moment: all is as it was, or done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from contextlib import suppress

import pytest

from tests.support.minidistro import INTERRUPT, KILL, Site

pytestmark = pytest.mark.root


MOMENTS = [
    "resolve ...",
    "fetch ...",
    "bootstrap ...",
    "unpack ...",
    "configure ...",
    "post hooks ...",
    "pack ...",
    "publish ...",
]


@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_at_any_moment_leaves_everything_as_it_was(site: Site, moment: str) -> None:
    recipe = site.recipe('[[hook]]\nphase = "post"\nscript = "sleep 0.3"')
    done = site.interrupt("build", recipe, number=INTERRUPT, when=lambda line: moment in line)
    assert done.returncode in {130, 0} if moment in {"pack ...", "publish ..."} else done.returncode == 130, done.stderr
    assert len(site.json("list")) == (done.returncode == 0)
    assert site.is_clean()


def test_ctrl_c_between_any_two_moments_is_heard_whole_or_too_late(site: Site) -> None:
    recipe = site.recipe('[[hook]]\nphase = "post"\nscript = "head -c 100 /dev/urandom > /etc/noise"')
    began = time.monotonic()
    site.run("build", recipe)
    whole = time.monotonic() - began
    for part in range(2, 16, 2):
        before = site.run("list", "--json").stdout
        command = site.command("build", recipe)
        with subprocess.Popen(command, env=site.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as job:
            time.sleep(whole * part / 16)
            job.send_signal(INTERRUPT)
            said = job.communicate(timeout=60)[1]
        # Before there is anything to undo it is the kernel that ends it.
        assert job.returncode in {0, 128 + INTERRUPT, -INTERRUPT}, said
        assert (site.run("list", "--json").stdout != before) == (job.returncode == 0)
        assert site.is_clean()


def test_ctrl_c_does_not_wait_for_a_mirror_that_went_silent(site: Site) -> None:
    recipe = site.recipe()
    site.run("lock", recipe)
    site.mirror.stall |= {f"/{path.relative_to(site.mirror.root)}" for path in site.mirror.root.rglob("*.deb")}
    began = time.monotonic()
    done = site.interrupt("build", recipe, "--locked", number=INTERRUPT, when=lambda line: "bootstrap ..." in line)
    assert done.returncode == 130
    assert time.monotonic() - began < 25  # a server may be silent for 30 s, four times, before it counts as gone
    assert site.is_clean()


def test_ctrl_c_between_two_recipes_leaves_and_tells_the_first(site: Site) -> None:
    first, second = site.recipe(name="first"), site.recipe(name="second")
    job = subprocess.Popen(
        site.command("build", first, second, "--json", "--progress", "plain"),
        env=site.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with job:
        assert job.stderr
        for line in job.stderr:
            if b"publish: done" in line:
                job.send_signal(INTERRUPT)
                break
        job.stderr.read()
        assert job.stdout
        said = json.loads(job.stdout.read())
    assert job.returncode == 130
    assert [item["reference"] for item in said["done"]] == ["first:1"]
    assert said["error"]["ref"] == "interrupted"
    assert [item["name"] for item in site.json("list")] == ["first"]
    assert site.is_clean()


@pytest.mark.parametrize("moment", MOMENTS)
def test_kill_9_at_any_moment_leaves_the_old_state_and_the_next_run_cleans_up(site: Site, moment: str) -> None:
    recipe = site.recipe('[[hook]]\nphase = "post"\nscript = "sleep 0.3"')
    site.interrupt("build", recipe, number=KILL, when=lambda line: moment in line)
    site.run("verify")
    assert site.json("build", recipe)["reference"] == "mini:1"
    assert not site.leftovers()


def test_the_scratch_directory_of_a_killed_build_waits_for_nobody(site: Site) -> None:
    recipe = site.recipe('[[hook]]\nphase = "post"\nscript = "sleep 30"')
    began = time.monotonic()
    site.interrupt("build", recipe, number=KILL, when=lambda line: "post hooks ..." in line)
    assert time.monotonic() - began < 20, "the hook died with the build"
    assert list((site.place / "work").iterdir())
    site.json("build", site.recipe(name="other"))
    assert list((site.place / "work").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_build_that_is_told_to_end_cleans_up(site: Site, number: int) -> None:
    site.publish()
    done = site.interrupt("build", site.recipe(), number=number, when=lambda line: "unpack ..." in line)
    assert done.returncode == 128 + number
    assert "Traceback" not in done.stderr
    assert site.is_clean()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_command_inside_a_capsule_ends_with_what_ends_vnfs(site: Site, number: int) -> None:
    site.publish()
    site.run("build", site.recipe())
    site.run("mount", "mini", "--at", site.place / "at")
    process = subprocess.Popen(
        site.command("shell", "mini", "--", "sh", "-c", "echo ready; while :; do :; done"),
        env=site.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        # Ctrl-C goes to the whole foreground group, the others to vnfs alone.
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        assert process.wait(10) == (-number if number == signal.SIGKILL else 128 + number)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while any("process" in item for item in site.leftovers()) and time.monotonic() < deadline:
        time.sleep(0.1)
    site.run("close", "mini", "--yes")
    assert not (site.place / "at").exists()
