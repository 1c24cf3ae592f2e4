"""Signals that end us, heard where nothing is lost by it.

Python raises KeyboardInterrupt between any two instructions of the main thread: also when a file has just been made
and nobody has noted yet that it must be removed, and in the middle of removing it. So what must be undone whatever
happens is opened as a `resource`, whose making and undoing no signal cuts short; other steps that must not be torn
apart are `held` together. Only the main thread is ever interrupted, and only it is guarded here.
"""

from __future__ import annotations

import functools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType, TracebackType
from typing import Any, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_MOMENT = 0.005
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _State:
    """Of the main thread: what keeps signals off, whether one came meanwhile, the resources in use, and what went wrong
    with undoing those that a signal kept from it."""

    def __init__(self) -> None:
        self.holds = 0
        self.finished = False
        self.waiting = False
        self.interrupted = False
        self.open: list[_Resource[Any]] = []
        self.errors: list[Exception] = []


_state = _State()


def _guarded() -> bool:
    return threading.current_thread() is threading.main_thread()


class Interruption:
    """Makes SIGTERM and SIGHUP unwind as Ctrl-C does, so that what is open is closed and removed. The first signal
    counts: a second one must not cut the cleaning short."""

    def __init__(self) -> None:
        self.signal = signal.SIGINT
        for number in _SIGNALS:
            # What nohup, or a shell's &, has us ignore stays ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if not (_state.waiting or _state.interrupted):  # and not SIG_IGN then: what we still start would inherit that
            self.signal = signal.Signals(number)
            interrupt(number, frame)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, now or as soon as nothing keeps it off. A signal handler."""
    if _finalizing(frame):
        # What is raised there is printed and forgotten: the signal shall come again in a moment.
        threading.Timer(_MOMENT, os.kill, (os.getpid(), number)).start()
        return
    _state.waiting = True
    _hear()


def _finalizing(frame: FrameType | None) -> bool:
    while frame and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


def finish() -> None:
    """From here on no signal is heard: what was asked is done, and what is left is to tidy up and to say so."""
    _state.finished = True


def resume() -> None:
    """Hear signals again after `finish`, one that came meanwhile too: something else begins."""
    _state.finished = False
    _hear()


def _hear() -> None:
    if _state.waiting and not _state.finished and not _state.holds:
        _state.waiting = False
        _state.interrupted = True
        raise KeyboardInterrupt


class held:
    """While this context lasts no signal interrupts the main thread. One that came is heard at its end."""

    def __init__(self) -> None:
        self._count = int(_guarded())

    def __enter__(self) -> None:
        _state.holds += self._count

    def __exit__(self, *_: object) -> None:
        # Python looks for signals where a function begins and after it called C: from here to the caller that is
        # nowhere but in `_hear`, which raises then what it would raise anyway.
        _state.holds -= self._count
        _hear()


def resource(function: Callable[P, Iterator[T]]) -> Callable[P, AbstractContextManager[T]]:
    """As `contextlib.contextmanager`, for what must be undone: a signal is heard before it is made, while the body of
    the context runs, or after it is undone. So neither end may wait for somebody else."""
    manager = contextmanager(function)

    @functools.wraps(function)
    def opened(*args: P.args, **kwargs: P.kwargs) -> AbstractContextManager[T]:
        return _Resource(manager(*args, **kwargs))

    return opened


class _Resource(Generic[T]):
    def __init__(self, inner: AbstractContextManager[T]) -> None:
        self._inner = inner
        self._ended = False

    def __enter__(self) -> T:
        with held():
            value = self._inner.__enter__()
            if _guarded():
                _state.open.append(self)
        return value

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        with held():
            if self._ended:
                return None
            self._ended = True
            if self in _state.open:  # else it was entered by another thread
                # A signal that is heard between the last line of a context and its end keeps it from being ended.
                # What lies within us goes first.
                while _state.interrupted and _state.open[-1] is not self:
                    _state.open[-1].abandon()
                _state.open.remove(self)
            return self._inner.__exit__(kind, error, trace)

    def abandon(self) -> None:
        """End it for the signal that kept it from being ended."""
        try:
            self.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
        except KeyboardInterrupt:
            pass
        except Exception as error:
            _state.errors.append(error)


def close_all() -> Exception | None:
    """Undo what a signal kept from being undone, and return the first error. For when everything is unwound."""
    while _state.open:
        _state.open[-1].abandon()
    errors, _state.errors = _state.errors, []
    _state.interrupted = False
    return errors[0] if errors else None
