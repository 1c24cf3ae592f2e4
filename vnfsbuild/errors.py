"""The one tree of errors, and what their hints share. The library raises them; only the command line turns them into
text and an exit code.

VnfsError
├── UsageError            the caller asked for something that cannot be (exit 2)
├── RecipeError           a recipe or lock is wrong: names file, line and key
├── LockStale             the lock does not fit the recipe, and resolving was forbidden (exit 3)
├── ResolveError          no set of packages satisfies the recipe
├── TrustError            bytes are not what was promised: never retried
├── NetworkError          a server did not answer: retried by the caller's policy, then raised with the URL
│   └── NotFoundOnServer  it answers, and has no such file: never retried; a NotFound, too
├── HostError             this machine lacks something
│   ├── ProgramMissing
│   ├── NotRoot
│   └── NoSpace
├── CommandFailed         an external program failed: carries the command, ready to paste, and its last lines
│   └── HookFailed
├── NotFound              no such capsule, version, tag, digest or node
├── Busy                  somebody else holds it
├── Conflict              the state of things forbids it: mounted already, not mounted, name taken
└── Interrupted           a signal ended it: the message says what state things are in (exit 130)
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence


class VnfsError(Exception):
    """Something the user can act on.

    `message` names the file, key or object; `hint` says what to do next. `ref` is a stable kebab-case word for
    machines, `exit_code` what the command line returns; `done` holds answers about what was finished before.
    """

    ref = "error"
    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.done: Sequence[Mapping[str, object]] = ()

    def __str__(self) -> str:
        return self.message


class UsageError(VnfsError):
    """Wrong words on the command line, or a malformed reference or name."""

    ref = "usage"
    exit_code = 2


class RecipeError(VnfsError):
    """A recipe or lock file that cannot be used as written."""

    ref = "recipe"


class LockStale(VnfsError):
    """The recipe asks for something else than its lock holds, and --locked forbids resolving."""

    ref = "lock-stale"
    exit_code = 3


class ResolveError(VnfsError):
    """A package does not exist, or the set asked for cannot be installed together."""

    ref = "unsatisfiable"


class TrustError(VnfsError):
    """A signature, digest or size is wrong. Never retried: asking again does not make bytes trustworthy."""

    ref = "trust"


class NetworkError(VnfsError):
    """A server could not be reached or broke off; the message carries the URL."""

    ref = "network"


class HostError(VnfsError):
    """This machine lacks something that the operation needs."""

    ref = "host"


class ProgramMissing(HostError):
    """An external program is not installed."""

    ref = "program-missing"


class NotRoot(HostError):
    """The operation needs root."""

    ref = "not-root"


class NoSpace(HostError):
    """A file system is full, or would be."""

    ref = "no-space"
    FREE_SOME = "free some, or point VNFS_STORE, VNFS_CACHE or VNFS_WORK elsewhere"


class CommandFailed(VnfsError):
    """An external program returned an error.

    `argv` is what ran, `returncode` what it answered (negative: the signal that ended it), `tail` its last lines.
    """

    ref = "command-failed"

    def __init__(self, argv: Sequence[str], returncode: int, tail: str, *, what: str = "", hint: str = "") -> None:
        self.argv = tuple(argv)
        self.returncode = returncode
        self.tail = tail.rstrip()
        ended = f"was ended by signal {-returncode}" if returncode < 0 else f"failed with exit code {returncode}"
        message = f"{what or self.argv[0]} {ended}"
        if self.tail:
            message += "\n" + "\n".join("  | " + line for line in self.tail.splitlines())
        super().__init__(message, hint or f"to see it again: {shlex.join(self.argv)}")


class HookFailed(CommandFailed):
    """A recipe's hook returned an error."""

    ref = "hook-failed"


class NotFound(VnfsError):
    """No such capsule, version, tag, digest, recipe or node."""

    ref = "not-found"


class NotFoundOnServer(NetworkError, NotFound):
    """The server answers, and has no such file."""

    ref = "network"


class Busy(VnfsError):
    """Another process uses it right now."""

    ref = "busy"


class Conflict(VnfsError):
    """The operation does not fit the state of things: already mounted, not mounted, name taken."""

    ref = "conflict"


class Interrupted(VnfsError):
    """A signal ended it; the message says what state things are in. The command line returns 128 + the signal."""

    ref = "interrupted"
    exit_code = 130

    def __init__(self, message: str = "interrupted; nothing is left half done", hint: str = "") -> None:
        super().__init__(message, hint)


def did_you_mean(word: str, known: Iterable[str], otherwise: str) -> str:
    """A hint for a word that is not `known`: the nearest one that is, else `otherwise`."""
    import difflib  # noqa: PLC0415  (only a mistake should take the time)

    near = difflib.get_close_matches(word, list(known), 1)
    return f"did you mean {near[0]}?" if near else otherwise
