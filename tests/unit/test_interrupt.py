"""Real signals, thousands of them, at every moment of what must not be torn apart."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from vnfsbuild.host import interrupt
from vnfsbuild.host.fs import atomic_write, work_directory
from vnfsbuild.host.interrupt import held, resource
from vnfsbuild.host.run import run, started
from vnfsbuild.store.cas import LocalBlobs

STEP = 1e-6


@pytest.fixture(autouse=True)
def alarm() -> Iterator[None]:
    interrupt.resume()
    previous = signal.signal(signal.SIGALRM, interrupt.interrupt)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)
    interrupt.close_all()


def _swept(job: Callable[[], object], check: Callable[[], object], *, rounds: int, until: float) -> int:
    """Run `job` again and again, each time interrupted a little later; `check` after each. How many were hit."""
    hits = 0
    for number in range(rounds):
        error = None
        try:
            signal.signal(signal.SIGALRM, interrupt.interrupt)
            signal.setitimer(signal.ITIMER_REAL, STEP + until * number / rounds)
            job()
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
        except KeyboardInterrupt as caught:
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
            error = caught  # kept, with all its frames: nothing is closed only because nobody refers to it any more
            hits += 1
        interrupt.close_all()
        check()
        del error
    return hits


def _duration(job: Callable[[], object]) -> float:
    took = []
    for _ in range(5):
        began = time.perf_counter()
        job()
        took.append(time.perf_counter() - began)
    return sorted(took)[2]


def _children() -> set[str]:
    """What this process started and nobody waited for yet, dead or alive."""
    return {word for file in Path("/proc/self/task").glob("*/children") for word in file.read_text().split()}


def _empty(directory: Path) -> None:
    assert list(directory.iterdir()) == []


def test_a_blob_on_its_way_in_is_removed_at_whatever_moment_a_signal_comes(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path / "blobs")

    def job() -> None:
        blobs.put_bytes(os.urandom(16))

    hits = _swept(job, lambda: _empty(blobs.ingest), rounds=1500, until=_duration(job))
    assert hits > 10
    assert all(blobs.sound(blob) for blob in blobs.all())


def test_a_scratch_directory_is_removed_at_whatever_moment_a_signal_comes(tmp_path: Path) -> None:
    def job() -> None:
        with work_directory(tmp_path, "outer") as outer, work_directory(outer, "inner") as inner:
            (inner / "file").write_text("x")

    assert _swept(job, lambda: _empty(tmp_path), rounds=1500, until=_duration(job)) > 10


def test_a_file_is_replaced_whole_or_not_at_whatever_moment_a_signal_comes(tmp_path: Path) -> None:
    file = tmp_path / "file"
    texts = [b"a" * 50_000, b"b" * 50_000]
    turn = 0

    def job() -> None:
        nonlocal turn
        turn += 1
        atomic_write(file, texts[turn % 2])

    def check() -> None:
        assert file.read_bytes() in texts
        assert list(tmp_path.iterdir()) == [file]

    assert _swept(job, check, rounds=800, until=_duration(job)) > 10


@pytest.mark.parametrize("beside", [False, True], ids=["run", "started"])
def test_no_program_lives_on_at_whatever_moment_a_signal_comes(tmp_path: Path, beside: bool) -> None:
    before = _children()

    def job() -> None:
        if beside:
            with started(["sleep", "60"]):
                pass
        else:
            run(["sh", "-c", "exit 0"])

    def check() -> None:
        assert _children() == before

    assert _swept(job, check, rounds=200, until=_duration(job)) > 2


def test_a_signal_waits_for_the_end_of_what_is_held() -> None:
    steps = []

    def job() -> None:
        with held():
            with held():
                signal.raise_signal(signal.SIGALRM)
                steps.append("inner")
            steps.append("outer")
        steps.append("after")

    with pytest.raises(KeyboardInterrupt):
        job()
    assert steps == ["inner", "outer"]


def test_what_a_signal_kept_open_is_closed_before_what_is_around_it() -> None:
    closed = []

    @resource
    def thing(name: str) -> Iterator[str]:
        try:
            yield name
        finally:
            closed.append(name)

    def job() -> None:
        with thing("outer"):
            thing("inner").__enter__()  # as if a signal had struck before the `with` had noted it
            signal.raise_signal(signal.SIGALRM)

    with pytest.raises(KeyboardInterrupt):
        job()
    assert closed == ["inner", "outer"]


def test_resources_may_end_in_any_order_when_nothing_was_interrupted() -> None:
    closed = []

    @resource
    def thing(name: str) -> Iterator[str]:
        yield name
        closed.append(name)

    with ExitStack() as first:
        first.enter_context(thing("first"))
        second = thing("second")
        second.__enter__()
        first.close()
        assert closed == ["first"]
        second.__exit__(None, None, None)
    assert closed == ["first", "second"]


def test_what_a_thread_opened_is_closed_by_whoever_leaves_it() -> None:
    closed = []

    @resource
    def thing() -> Iterator[None]:
        yield
        closed.append(threading.current_thread())

    def elsewhere(job: Callable[[], object]) -> None:
        thread = threading.Thread(target=job)
        thread.start()
        thread.join()

    there, here = thing(), thing()
    elsewhere(there.__enter__)
    here.__enter__()
    elsewhere(lambda: here.__exit__(None, None, None))
    there.__exit__(None, None, None)
    interrupt.close_all()
    assert len(closed) == 2


def test_what_could_not_be_undone_is_told(tmp_path: Path) -> None:
    @resource
    def thing() -> Iterator[None]:
        try:
            yield
        finally:
            raise OSError("still busy")

    thing().__enter__()
    assert str(interrupt.close_all()) == "still busy"
    assert interrupt.close_all() is None


def test_a_program_that_will_not_end_is_ended_whatever_signal_comes_meanwhile() -> None:
    before = _children()
    signal.setitimer(signal.ITIMER_REAL, 1.5)
    with pytest.raises(KeyboardInterrupt):
        run(["sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"], timeout=1)
    assert _children() == before


def test_the_first_signal_counts_and_others_cut_nothing_short() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    interruption = interrupt.Interruption()
    try:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert interruption.signal is signal.SIGTERM
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_signal_that_comes_while_an_object_is_removed_is_not_lost() -> None:
    class Thing:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGALRM)

    def job() -> None:
        Thing()
        time.sleep(10)

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        job()
    assert time.monotonic() - began < 5


def test_an_error_passes_through_a_resource_as_through_any_context() -> None:
    heard = []

    @resource
    def thing() -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            heard.append(str(error))
            raise

    with pytest.raises(ValueError, match="mine"), thing():
        raise ValueError("mine")
    assert heard == ["mine"]


def test_a_signal_that_comes_when_all_is_done_is_heard_only_if_something_else_begins() -> None:
    interrupt.finish()
    interrupt.finish()
    signal.raise_signal(signal.SIGALRM)
    with pytest.raises(KeyboardInterrupt):
        interrupt.resume()
    interrupt.resume()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGALRM)
