"""Which nodes a command means: `[user@]host[:port]` words, IPv6 addresses in brackets, ranges such as n[01-16].

Ranges and groups are ClusterShell's; it is imported only when a word has one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from vnfsbuild.errors import HostError, UsageError

_MOST = 100_000
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,252}\Z|[0-9A-Fa-f:.]{2,45}(%[A-Za-z0-9._-]+)?\Z")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\Z")
_ADDRESS = re.compile(r"\[([0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.%\w]*)\]")


@dataclass(frozen=True, slots=True)
class Node:
    """One machine as ssh reaches it. Without user and port, ssh's own configuration decides."""

    host: str
    user: str = ""
    port: int | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.user + '@' if self.user else ''}{host}{f':{self.port}' if self.port else ''}"


def parse(words: Iterable[str]) -> tuple[Node, ...]:
    """The nodes that words mean, in order, each once. Raises UsageError, or HostError when ClusterShell is wanted
    and not there."""
    found = dict.fromkeys(node for word in words for node in _expand(word))
    if not found:
        raise UsageError("no nodes were given", "name hosts, or ranges such as n[01-16]")
    return tuple(found)


def _expand(word: str) -> Iterable[Node]:
    user, at, rest = word.rpartition("@")
    if at and not user:  # @group
        user, rest = "", word
    if user and not _USER.match(user):
        raise UsageError(f"{word!r} has no valid user name")
    address = _ADDRESS.match(rest)
    hosts, _, tail = (address[1], "", rest[address.end() :]) if address else _cut_port(rest)
    port = _port(tail, word)
    names = _range(hosts, word) if not address and re.search(r"[\[,@!&^]", hosts) else [hosts]
    for name in names:
        if not _HOST.match(name):
            raise UsageError(f"{name!r} is not the name or address of a host", "write [user@]host[:port]")
        yield Node(name, user, port)


def _cut_port(text: str) -> tuple[str, str, str]:
    if text.count(":") > 1 and "[" not in text:  # a bare IPv6 address has no port
        return text, "", ""
    match = re.fullmatch(r"(.*?)(:[^:\[\]]*)?", text, re.DOTALL)
    return (match[1], "", match[2] or "") if match else (text, "", "")


def _port(tail: str, word: str) -> int | None:
    if not tail:
        return None
    digits = tail.removeprefix(":")
    if not tail.startswith(":") or not digits.isascii() or not digits.isdigit() or not 0 < int(digits) < 65536:
        raise UsageError(f"{word!r} has no valid port", "write [user@]host[:port]")
    return int(digits)


def _range(text: str, word: str) -> list[str]:
    try:
        from ClusterShell.NodeSet import NodeSet, NodeSetException  # noqa: PLC0415
    except ImportError:
        raise HostError(
            f"{word} is a range of nodes, and ClusterShell is not installed", "pip install 'vnfs[livesync]'"
        ) from None
    try:
        found = NodeSet(text)
        if len(found) > _MOST:
            raise UsageError(f"{word} means {len(found)} nodes; at most {_MOST} at once")
        return [str(name) for name in found]
    except NodeSetException as error:
        raise UsageError(f"{word!r} is not a range of nodes: {error}", "ranges look like n[01-16,20]") from error
