"""Where a distribution's archives are, without naming a host.

The first that answers wins: the recipe's mirror, the site's (settings and VNFS_MIRROR_<ID>), the apt sources of a host
that runs the same distribution, the mirror lists of the host's distribution-info package. What a mirror sends is
believed for its signature, so this module need not trust any of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from vnfsbuild.errors import HostError, UsageError
from vnfsbuild.family.distros import Pocket, Release

_SCHEMES = frozenset({"http", "https", "file"})
_INFO = "usr/share/python-apt/templates"
_ONE_LINE = re.compile(r"deb\s+(?:\[(?P<options>[^\]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)(?:\s+(?P<components>.*))?")


@dataclass(frozen=True, slots=True)
class Source:
    """An entry of the host's apt sources."""

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]
    signed_by: str = ""


def locate(row: Release, *, recipe: str, site: Mapping[str, str], host: Path = Path("/")) -> dict[Pocket, str]:
    """The URI, without a slash at its end, for each pocket of `row`.

    `recipe` is the recipe's mirror or empty, `site` maps ids to URIs: `debian`, and `debian-security` where that is
    elsewhere. A mirror whose path ends as the archive's usually does (`…/debian`) has the security archive beside it
    (`…/debian-security`); any other serves all pockets. `host` is where the host's files are.
    Raises HostError saying what to set when nothing is found, UsageError for a URI that cannot be fetched from.
    """
    found = {}
    for pocket in row.pockets:
        said = _said(row, pocket, recipe, site)
        uri = said or _from_sources(row, pocket, host) or _from_info(row, pocket, host)
        if not uri:
            raise HostError(
                f"no mirror is known for {row.title} {pocket.suite}",
                f"say one: mirror in the recipe's [distro], or VNFS_MIRROR_{row.id.upper()}=URI, or "
                f"[mirrors] {row.id} in the site configuration",
            )
        if urlsplit(uri).scheme not in _SCHEMES:
            raise UsageError(f"the mirror {uri} of {row.id} is not an http, https or file URL")
        found[pocket] = uri.rstrip("/")
    return found


def _said(row: Release, pocket: Pocket, recipe: str, site: Mapping[str, str]) -> str:
    if pocket.archive != "main":
        own = f"{row.id}-{pocket.archive}"
        given = site.get(own) or site.get(own.replace("-", "_"))
        if given and not recipe:
            return given
    main = recipe or site.get(row.id, "")
    return _sibling(main, row, pocket) if main else ""


def _sibling(main: str, row: Release, pocket: Pocket) -> str:
    names = dict(row.archives)
    base, slash, last = main.rstrip("/").rpartition("/")
    return f"{base}{slash}{names[pocket.archive]}" if last == names["main"] else main


# ---- the host's apt sources


def _from_sources(row: Release, pocket: Pocket, host: Path) -> str:
    codename = _host_codename(row, host)
    if not codename:
        return ""
    # The host's own suite stands for the one that is asked for: bookworm-security is where trixie-security is.
    wanted = {pocket.suite, pocket.suite.replace(row.suite, codename, 1)}
    for source in host_sources(host):
        if wanted & set(source.suites) and set(row.components) <= set(source.components):
            for uri in source.uris:
                if urlsplit(uri).scheme in _SCHEMES and _is_archive(row, pocket, source, uri):
                    return uri
    return ""


def _host_codename(row: Release, host: Path) -> str:
    """The codename of the host's own release, if it runs the distribution of `row`."""
    try:
        lines = (host / "etc/os-release").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    said = {key: value.strip("\"'") for key, _, value in (line.partition("=") for line in lines)}
    return said.get("VERSION_CODENAME", "") if said.get("ID") == row.id else ""


def _is_archive(row: Release, pocket: Pocket, source: Source, uri: str) -> bool:
    """Whether an entry is the distribution's own: strangers name their suites bookworm too."""
    if source.signed_by:
        return any(Path(word).name.startswith(row.keyring_package) for word in source.signed_by.split()) or (
            source.signed_by in row.keyrings
        )
    return uri.rstrip("/").rpartition("/")[2] in {dict(row.archives)[pocket.archive], row.id}


def host_sources(host: Path) -> Iterator[Source]:
    """The binary-package entries of the host's apt, in apt's order: one-line and deb822 files."""
    directory = host / "etc/apt/sources.list.d"
    extra = sorted(path for path in directory.iterdir() if path.is_file()) if directory.is_dir() else []
    for path in (host / "etc/apt/sources.list", *extra):
        try:
            text = path.read_text(errors="replace")
        except OSError:
            continue
        if path.suffix == ".list":
            yield from _one_line(text)
        elif path.suffix == ".sources":
            yield from _deb822(text)


def _one_line(text: str) -> Iterator[Source]:
    for line in text.splitlines():
        match = _ONE_LINE.fullmatch(line.partition("#")[0].strip())
        if match:
            options = dict(word.partition("=")[::2] for word in (match["options"] or "").split())
            components = tuple((match["components"] or "").split())
            yield Source((match["uri"],), (match["suite"],), components, options.get("signed-by", ""))


def _deb822(text: str) -> Iterator[Source]:
    for stanza in stanzas(text):
        if "deb" in stanza.get("types", "").split() and stanza.get("enabled", "yes").lower() not in {"no", "false"}:
            yield Source(
                tuple(stanza.get("uris", "").split()),
                tuple(stanza.get("suites", "").split()),
                tuple(stanza.get("components", "").split()),
                stanza.get("signed-by", ""),
            )


def stanzas(text: str) -> Iterator[dict[str, str]]:
    """Blocks of `Key: value` lines, keys in lower case, comments left out, continuation lines joined."""
    stanza: dict[str, str] = {}
    key = ""
    for line in [*text.splitlines(), ""]:
        if line.startswith("#"):
            continue
        if not line.strip():
            if stanza:
                yield stanza
            stanza, key = {}, ""
        elif line[0].isspace():
            if key:
                stanza[key] += f"\n{line.strip()}"
        else:
            key, _, value = line.partition(":")
            key = key.strip().lower()
            stanza[key] = value.strip()


# ---- the host's distribution-info package


def _from_info(row: Release, pocket: Pocket, host: Path) -> str:
    try:
        text = (host / _INFO / f"{row.mirror_info}.info").read_text(errors="replace")
    except OSError:
        return ""
    uris: dict[str, str] = {}
    for stanza in stanzas(text):
        suite = stanza.get("suite", "").replace("{series}", row.suite)
        uris.setdefault(suite, stanza.get("baseuri", ""))
    return uris.get(pocket.suite) or (uris.get(row.suite, "") if pocket.archive == "main" else "")
