"""Requests to one registry: retries, redirects, authorization. What it answers is bounded and never believed.

The Authorization header goes to the registry's own scheme, host and port, and nowhere else. Network failures, 5xx and
429 are asked again with jittered backoff; broken trust (certificates, refused credentials) never is.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from http.cookiejar import DefaultCookiePolicy
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
from requests.auth import AuthBase

from vnfsbuild.deliver.transfer.remote import Credentials
from vnfsbuild.errors import NetworkError, NotFound, TrustError, VnfsError
from vnfsbuild.host.http import TRANSIENT, asked_to_wait, backoff, reason, session
from vnfsbuild.model import one_line

_TIMEOUT = (10, 60)  # seconds to connect, and between two pieces of an answer
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS = 5
_MAX_TOKEN = 1 << 20
_PARAMETER = re.compile(r'([a-zA-Z_]+)\s*=\s*(?:"([^"]*)"|([^\s,"]+))')

Body = Callable[[], Any]


class _Later(NetworkError):
    """The server asks to be left alone for `wait` seconds, or is in trouble."""

    def __init__(self, message: str, hint: str, *, wait: float) -> None:
        super().__init__(message, hint)
        self.wait = wait


class Interrupted(Exception):
    """Another transfer of the same job failed; this one ends quietly."""


class _Header(AuthBase):
    """Sets the header we chose. Having it keeps requests from looking for credentials of its own (netrc)."""

    def __init__(self, value: str) -> None:
        self._value = value

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers.pop("Authorization", None)
        if self._value:
            request.headers["Authorization"] = self._value
        return request


class Http:
    """A connection pool to one registry; may be used from several threads."""

    def __init__(self, base: str, *, credentials: Credentials | None = None, retries: int = 5) -> None:
        self.base = base
        self.retries = retries
        self.stop = threading.Event()
        self._credentials = credentials
        self._authorization = ""
        self._lock = threading.Lock()
        self._session = session()
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))

    def close(self) -> None:
        self._session.close()

    def send(
        self,
        method: str,
        url: str,
        *,
        ok: frozenset[int],
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        retry: bool = True,
    ) -> requests.Response:
        """One request, its answer unread; the caller closes it. `url` may be relative to the registry. Without
        `retry` the caller has a loop of its own around more than one request.

        Raises NotFound for 404, NetworkError when no answer came in the end, TrustError for a certificate that does
        not hold, VnfsError for another refusal; each names the URL.
        """
        where = urljoin(self.base + "/", url)
        for attempt in range(self.retries + 1):
            try:
                response = self._authorized(method, where, dict(headers or {}), body)
                if response.status_code in ok:
                    return response
                problem = _refusal(method, where, response)
                response.close()
            except NetworkError as error:
                problem = error
            if not isinstance(problem, NetworkError) or not retry or attempt == self.retries:
                raise problem
            self.pause(attempt, problem)
        raise AssertionError("unreachable")

    def pause(self, attempt: int, problem: NetworkError) -> None:
        """Wait before asking again: longer each time (`attempt` counts from 0), never in step with others, and as
        long as the server wants. Raises Interrupted."""
        at_least = problem.wait if isinstance(problem, _Later) else 0.0
        self.sleep(max(backoff(attempt + 1), at_least))

    def sleep(self, seconds: float) -> None:
        """Wait. Raises Interrupted when the job is stopped meanwhile."""
        if self.stop.wait(seconds):
            raise Interrupted

    def _authorized(self, method: str, url: str, headers: dict[str, str], body: Body | None) -> requests.Response:
        used = self._authorization
        response = self._follow(method, url, headers, body, used)
        if response.status_code != 401 or not self._ours(response.url or ""):
            return response
        challenge = response.headers.get("WWW-Authenticate", "")
        response.close()
        with self._lock:
            if self._authorization == used:
                self._authorization = self._answer(challenge, refused=used)
        return self._follow(method, url, headers, body, self._authorization)

    def _follow(
        self, method: str, url: str, headers: dict[str, str], body: Body | None, authorization: str
    ) -> requests.Response:
        for _ in range(_MAX_REDIRECTS + 1):
            mine = authorization if self._ours(url) else ""
            response = self._once(method, url, headers, body, mine)
            if response.status_code not in _REDIRECTS or method not in {"GET", "HEAD"}:
                return response
            target = response.headers.get("Location", "")
            response.close()
            url = self._redirected(url, target)
        raise VnfsError(f"{self.base} redirects in circles")

    def _redirected(self, url: str, target: str) -> str:
        try:
            following = urljoin(url, target)
            scheme = urlsplit(following).scheme
        except ValueError:
            scheme = ""
        if not target or scheme not in {"http", "https"} or (scheme == "http" and urlsplit(url).scheme == "https"):
            raise TrustError(f"{bare(url)} redirects to {one_line(target)!r}, which is no safe address")
        return following

    def _once(
        self, method: str, url: str, headers: dict[str, str], body: Body | None, authorization: str
    ) -> requests.Response:
        if self.stop.is_set():
            raise Interrupted
        try:
            return self._session.request(
                method,
                url,
                headers=headers,
                data=body() if body else None,
                auth=_Header(authorization),
                stream=True,
                timeout=_TIMEOUT,
                allow_redirects=False,
            )
        except requests.exceptions.SSLError as error:
            raise TrustError(
                f"{bare(url)}: the server's certificate does not hold: {reason(error)}",
                "use a certificate this host trusts (REQUESTS_CA_BUNDLE), or --plain-http inside a trusted network",
            ) from error
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, ValueError) as error:
            raise VnfsError(f"{bare(url)} is no address: {reason(error)}") from error
        except requests.RequestException as error:
            raise NetworkError(f"{bare(url)}: {reason(error)}", "is the registry running, and reachable?") from error

    def _ours(self, url: str) -> bool:
        return _origin(url) == _origin(self.base)

    # ---- authorization

    def _answer(self, challenge: str, *, refused: str) -> str:
        """The Authorization header that a 401 asks for. Called under the lock."""
        scheme, _, rest = challenge.partition(" ")
        if scheme.lower() == "basic" and self._credentials and refused != self._credentials.basic:
            return self._credentials.basic
        if scheme.lower() == "bearer":
            parameters = {key.lower(): quoted or word for key, quoted, word in _PARAMETER.findall(rest)}
            return "Bearer " + self._token(parameters)
        hint = "log in with docker login, or set VNFS_REGISTRY_USER and VNFS_REGISTRY_PASSWORD"
        raise VnfsError(
            f"{self.base} {'refuses the credentials' if self._credentials else 'asks for credentials'}", hint
        )

    def _token(self, parameters: Mapping[str, str]) -> str:
        realm = parameters.get("realm", "")
        scheme = urlsplit(realm).scheme
        if scheme not in {"http", "https"} or (scheme == "http" and urlsplit(self.base).scheme == "https"):
            raise TrustError(f"{self.base} sends us for a token to {one_line(realm)!r}, which is no safe address")
        query = {key: parameters[key] for key in ("service", "scope") if key in parameters}
        url = requests.Request("GET", realm, params=query).prepare().url or realm
        response = self._once("GET", url, {}, None, self._credentials.basic if self._credentials else "")
        with response:
            if response.status_code != 200:
                raise _refusal("GET", url, response)
            data = read_bounded(response, _MAX_TOKEN)
        try:
            answer = json.loads(data)
            token = answer.get("token") or answer["access_token"]
            if not isinstance(token, str) or not token.isascii() or not token.isprintable():
                raise ValueError("the token is not a word")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise VnfsError(f"{bare(url)} gave no token: {error}") from error
        return token


def read_bounded(response: requests.Response, limit: int) -> bytes:
    """The whole body. Raises TrustError beyond `limit` bytes, NetworkError when it breaks off."""
    data = bytearray()
    for chunk in stream(response, 1 << 16):
        data += chunk
        if len(data) > limit:
            raise TrustError(f"{bare(response.url or '')} answers with more than {limit} bytes")
    return bytes(data)


def stream(response: requests.Response, size: int) -> Iterator[bytes]:
    """The body piece by piece. Raises NetworkError when it breaks off, TrustError when it is encoded."""
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise TrustError(f"{bare(response.url or '')} sends encoded bytes although we asked for plain ones")
    try:
        yield from response.iter_content(size)
    except requests.RequestException as error:
        raise NetworkError(
            f"{bare(response.url or '')} broke off: {reason(error)}", "run it again: it resumes"
        ) from error


def bare(url: str) -> str:
    """An address as it may be shown: its query can carry what lets others in."""
    return one_line(url.partition("?")[0])


def _origin(url: str) -> tuple[str, str, int | None]:
    try:
        parts = urlsplit(url)
        default = {"http": 80, "https": 443}.get(parts.scheme)
        return parts.scheme, (parts.hostname or "").lower(), parts.port or default
    except ValueError:
        return "", "", None


def _refusal(method: str, url: str, response: requests.Response) -> VnfsError:
    """The error that an answer means, with what the registry says about it."""
    said = ""
    with suppress(VnfsError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        first = json.loads(read_bounded(response, 1 << 16))["errors"][0]
        said = f" ({one_line(str(first.get('code')))}: {one_line(str(first.get('message')))})"
    text = f"{method} {bare(url)}: the registry answers {response.status_code}{said}"
    if response.status_code == 404:
        return NotFound(text, "check the name; a registry may also hide what needs credentials")
    if response.status_code in {401, 403}:
        return VnfsError(text, "these credentials may not do that; see docker login, or VNFS_REGISTRY_USER")
    if response.status_code in TRANSIENT:
        return _Later(text, "the registry is in trouble; try again later", wait=asked_to_wait(response))
    if "DIGEST_INVALID" in said:
        return TrustError(text, "the bytes sent are not what they are named by: vnfs verify")
    return VnfsError(text)
