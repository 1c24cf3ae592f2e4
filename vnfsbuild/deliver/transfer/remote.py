"""Names of things in registries, and the credentials that belong to a registry. Sends nothing."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from vnfsbuild.errors import UsageError, VnfsError
from vnfsbuild.model import check_digest

_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?\Z")
_REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}\Z")
_HINT = "a place in a registry is HOST[:PORT]/REPOSITORY[:TAG] or …@sha256:…: registry.example.org/hpc/compute:7"


@dataclass(frozen=True, slots=True)
class Remote:
    """`HOST[:PORT]/REPOSITORY[:TAG|@DIGEST]`; at most one of tag and digest is set."""

    host: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    @classmethod
    def parse(cls, text: str) -> Remote:
        """Read a place as typed. Raises UsageError: the registry's host is never guessed."""
        host, slash, rest = text.partition("/")
        if not slash or not _HOST.match(host) or not ({".", ":"} & set(host) or host == "localhost"):
            raise UsageError(f"{text!r} does not begin with a registry's host", _HINT)
        rest, at, digest = rest.partition("@")
        repository, colon, tag = rest.partition(":")
        if (
            not _REPOSITORY.match(repository)
            or len(repository) > 255
            or (colon and not _TAG.match(tag))
            or (colon and at)
        ):
            raise UsageError(f"{text!r} is not a place in a registry", _HINT)
        return cls(host, repository, tag if colon else None, check_digest(digest) if at else None)

    @property
    def target(self) -> str:
        """What the manifest is asked for by."""
        return self.digest or self.tag or "latest"

    @property
    def is_local(self) -> bool:
        """Whether the host is this machine, where nobody listens in."""
        name = urlsplit(f"//{self.host}").hostname or ""
        try:
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return name == "localhost"

    def __str__(self) -> str:
        mark = f"@{self.digest}" if self.digest else f":{self.tag}" if self.tag else ""
        return f"{self.host}/{self.repository}{mark}"


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user's name and password (or token) at one registry."""

    user: str
    password: str

    def __repr__(self) -> str:
        return f"Credentials({self.user!r})"

    @property
    def basic(self) -> str:
        """The value of an Authorization header."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def find_credentials(host: str, environ: Mapping[str, str]) -> Credentials | None:
    """Credentials for a registry: VNFS_REGISTRY_USER and VNFS_REGISTRY_PASSWORD, else what `docker login` or
    `skopeo login` wrote (DOCKER_CONFIG, REGISTRY_AUTH_FILE, ~/.docker/config.json). Helper programs are not run."""
    if environ.get("VNFS_REGISTRY_USER") and "VNFS_REGISTRY_PASSWORD" in environ:
        return Credentials(environ["VNFS_REGISTRY_USER"], environ["VNFS_REGISTRY_PASSWORD"])
    home = environ.get("DOCKER_CONFIG") or f"{environ.get('HOME') or '/root'}/.docker"
    for path in (environ.get("REGISTRY_AUTH_FILE"), f"{home}/config.json"):
        found = _from_file(Path(path), host) if path else None
        if found:
            return found
    return None


def _from_file(path: Path, host: str) -> Credentials | None:
    try:
        auths = json.loads(path.read_bytes()).get("auths", {})
        for key in (host, f"https://{host}", f"https://{host}/v1/", f"https://{host}/v2/"):
            word = auths.get(key, {}).get("auth")
            if word:
                user, _, password = base64.b64decode(word, validate=True).decode().partition(":")
                return Credentials(user, password)
    except (FileNotFoundError, PermissionError):
        return None
    except (ValueError, AttributeError, TypeError, binascii.Error) as error:
        raise VnfsError(
            f"{path} is not a file of registry credentials: {error}", "log in to the registry again"
        ) from error
    return None
