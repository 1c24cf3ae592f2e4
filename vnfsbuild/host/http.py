"""What our HTTP clients (downloads, registries) have in common: how they present themselves, what means "later", how
long that is, and why a request really failed. Sends nothing itself."""

from __future__ import annotations

import random
from contextlib import suppress

import requests

from vnfsbuild import __version__
from vnfsbuild.model import one_line

# Answers after which the same request may succeed: RFC 9110 (408, 500, 502, 503, 504), RFC 8470 (425), RFC 6585 (429).
TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_FIRST_WAIT = 0.5
_LONGEST_WAIT = 30.0
_LONGEST_OBEYED = 60.0


def session() -> requests.Session:
    """Connections that say who we are and ask for bytes as they are: digests are of those, not of gzip's."""
    made = requests.Session()
    made.headers.update({"User-Agent": f"vnfs/{__version__}", "Accept-Encoding": "identity"})
    return made


def backoff(failures: int) -> float:
    """Seconds to wait after `failures` (from 1) in a row: doubling, and never in step with other clients."""
    return min(_LONGEST_WAIT, _FIRST_WAIT * (1 << min(failures - 1, 16))) * random.uniform(0.5, 1.5)  # noqa: S311


def asked_to_wait(response: requests.Response) -> float:
    """The seconds that a busy server asks us to stay away (Retry-After, RFC 9110), a minute at most; else 0."""
    with suppress(ValueError):
        return min(_LONGEST_OBEYED, max(0.0, float(response.headers.get("Retry-After", "0"))))
    return 0.0


def reason(error: BaseException) -> str:
    """The innermost words of an exception of requests, which wraps those of urllib3, which wrap the kernel's."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    if isinstance(error, OSError) and error.strerror:
        return one_line(error.strerror)
    inner = getattr(error, "reason", None)
    return one_line(str(inner if isinstance(inner, BaseException) else error) or type(error).__name__)
