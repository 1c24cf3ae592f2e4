"""Tiny signed apt repositories with real .deb bytes, and an HTTP server that can misbehave.

    repo = Repository(directory, signer)
    repo.write("bookworm", [Deb("hello", "1.0", files={"usr/bin/hello": (0o755, b"#!/bin/sh\\n")})])
    with HttpServer(directory) as server:
        … server.url …

`write_distribution` makes all pockets of a row of the table of distributions, so that a recipe resolves against it
as it is.
"""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import lzma
import os
import re
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

from tests.support.http import answering
from vnfsbuild.family import release

EPOCH = 1_700_000_000


@dataclass(frozen=True, slots=True)
class Deb:
    """A package. `files` maps paths (without a leading slash) to mode and bytes, or to a string: a symlink's target.
    `scripts` maps maintainer script names to their text. `extra` are further control fields."""

    name: str
    version: str = "1.0"
    arch: str = "all"
    depends: str = ""
    pre_depends: str = ""
    recommends: str = ""
    conflicts: str = ""
    breaks: str = ""
    provides: str = ""
    essential: bool = False
    priority: str = "optional"
    files: Mapping[str, tuple[int, bytes] | str] = field(default_factory=dict)
    scripts: Mapping[str, str] = field(default_factory=dict)
    conffiles: Sequence[str] = ()
    extra: Mapping[str, str] = field(default_factory=dict)

    @property
    def filename(self) -> str:
        return f"{self.name}_{self.version.replace(':', '%3a')}_{self.arch}.deb"

    def control(self) -> str:
        """The control stanza, ending in a newline."""
        fields = {
            "Package": self.name,
            "Version": self.version,
            "Architecture": self.arch,
            "Essential": "yes" if self.essential else "",
            "Maintainer": "Nobody <nobody@example.org>",
            "Priority": self.priority,
            "Section": "misc",
            "Pre-Depends": self.pre_depends,
            "Depends": self.depends,
            "Recommends": self.recommends,
            "Conflicts": self.conflicts,
            "Breaks": self.breaks,
            "Provides": self.provides,
            **self.extra,
            "Description": f"{self.name} for tests",
        }
        return "".join(f"{key}: {value}\n" for key, value in fields.items() if value)

    def build(self) -> bytes:
        """The .deb file: an ar archive of two tar archives. Equal packages have equal bytes."""
        control: dict[str, tuple[int, bytes] | str] = {"control": (0o644, self.control().encode())}
        control |= {name: (0o755, text.encode()) for name, text in self.scripts.items()}
        if self.conffiles:
            control["conffiles"] = (0o644, "".join(f"/{path}\n" for path in self.conffiles).encode())
        members = {
            "debian-binary": b"2.0\n",
            "control.tar.xz": lzma.compress(_tar(control), preset=0),
            "data.tar.xz": lzma.compress(_tar(self.files), preset=0),
        }
        return b"!<arch>\n" + b"".join(_ar_member(name, data) for name, data in members.items())


def _ar_member(name: str, data: bytes) -> bytes:
    header = f"{name:<16}{EPOCH:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode()
    return header + data + b"\n" * (len(data) % 2)


def _tar(files: Mapping[str, tuple[int, bytes] | str]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        done: set[str] = set()
        for path in [".", *sorted(files)]:
            for parent in [str(item) for item in reversed(Path(path).parents) if str(item) != "."]:
                if parent not in done and parent not in files:
                    archive.addfile(_member(parent, 0o755, tarfile.DIRTYPE))
                    done.add(parent)
            if path == ".":
                archive.addfile(_member("", 0o755, tarfile.DIRTYPE))
                continue
            what = files[path]
            if isinstance(what, str):
                member = _member(path, 0o777, tarfile.SYMTYPE)
                member.linkname = what
                archive.addfile(member)
            else:
                member = _member(path, what[0], tarfile.REGTYPE)
                member.size = len(what[1])
                archive.addfile(member, io.BytesIO(what[1]))
    return out.getvalue()


_PACK: Mapping[str, Callable[[bytes], bytes]] = {
    ".xz": lzma.compress,
    ".gz": lambda text: gzip.compress(text, mtime=0),
    "": bytes,
}


def packages_text(debs: Iterable[Deb]) -> str:
    """A Packages file of packages that exist only in it: enough for the solver."""
    digest = "0" * 64
    return "\n".join(
        f"{deb.control().rstrip()}\nFilename: pool/{deb.filename}\nSize: 1\nSHA256: {digest}\n" for deb in debs
    )


def _member(path: str, mode: int, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(f"./{path}")
    member.mode, member.type, member.mtime, member.uname, member.gname = mode, kind, EPOCH, "root", "root"
    return member


class Signer:
    """A key pair in a GnuPG directory of its own. `keyring` is the public half, binary; `armored` the same as text."""

    def __init__(self, home: Path, name: str = "Test Archive", kind: str = "ed25519") -> None:
        self.home = home
        home.mkdir(mode=0o700, parents=True)
        self._gpg("--quick-generate-key", f"{name} <archive@example.org>", kind, "sign", "never")
        listing = self._gpg("--list-keys", "--with-colons").decode()
        self.fingerprint = re.findall(r"^fpr:+([0-9A-F]{40}):", listing, re.MULTILINE)[0]
        self.keyring = home / "public.gpg"
        self.keyring.write_bytes(self._gpg("--export"))
        self.armored = home / "public.asc"
        self.armored.write_bytes(self._gpg("--export", "--armor"))

    def clearsign(self, text: str, *options: str) -> bytes:
        """`text` as an InRelease file. `options` are gpg's."""
        return self._gpg(*options, "--clearsign", data=text.encode())

    def close(self) -> None:
        """End the agent that gpg started for this key."""
        subprocess.run(["gpgconf", "--homedir", str(self.home), "--kill", "all"], check=False, capture_output=True)

    def _gpg(self, *words: str, data: bytes = b"") -> bytes:
        argv = [
            "gpg",
            "--homedir",
            str(self.home),
            "--batch",
            "--quiet",
            "--passphrase",
            "",
            "--pinentry-mode",
            "loopback",
        ]
        return subprocess.run([*argv, *words], input=data, stdout=subprocess.PIPE, check=True).stdout


class Repository:
    """A directory with `pool/` and `dists/`. `write` may be called again: a suite is replaced, the pool grows."""

    def __init__(self, root: Path, signer: Signer) -> None:
        self.root = root
        self.signer = signer

    def write(
        self,
        suite: str,
        debs: Iterable[Deb | Path],
        *,
        component: str = "main",
        arch: str = "amd64",
        codename: str = "",
        date: datetime | None = None,
        valid: timedelta | None = timedelta(days=7),
        by_hash: bool = True,
        compress: Sequence[str] = (".xz", ".gz", ""),
    ) -> None:
        """Write packages (described, or .deb files) and the signed index of `suite`.

        `codename` other than the suite's name, `valid` negative (expired) or None, and fewer kinds of index are ways to
        make a repository that is odd but honest.
        """
        stanzas = [self._add(deb) for deb in debs]
        directory = self.root / "dists" / suite / component / f"binary-{arch}"
        directory.mkdir(parents=True, exist_ok=True)
        text = "\n".join(stanzas).encode()
        names = {}
        for suffix in compress:
            data = {".xz": lambda: lzma.compress(text), ".gz": lambda: gzip.compress(text, mtime=0), "": lambda: text}[
                suffix
            ]()
            names[f"{component}/binary-{arch}/Packages{suffix}"] = data
            (directory / f"Packages{suffix}").write_bytes(data)
            digest = hashlib.sha256(data).hexdigest()
            if by_hash:
                (directory / "by-hash/SHA256").mkdir(parents=True, exist_ok=True)
                (directory / "by-hash/SHA256" / digest).write_bytes(data)
        now = date or datetime.now(UTC)
        lines = [
            "Origin: Test",
            f"Suite: {codename or suite}",
            f"Codename: {codename or suite}",
            f"Date: {format_datetime(now, usegmt=True)}",
            *([f"Valid-Until: {format_datetime(now + valid, usegmt=True)}"] if valid is not None else []),
            *(["Acquire-By-Hash: yes"] if by_hash else []),
            f"Architectures: {arch}",
            f"Components: {component}",
            "SHA256:",
            *(f" {hashlib.sha256(data).hexdigest()} {len(data)} {name}" for name, data in names.items()),
        ]
        (self.root / "dists" / suite / "InRelease").write_bytes(self.signer.clearsign("\n".join(lines) + "\n"))

    def write_distribution(self, distro: str, suite: str, debs: Iterable[Deb | Path], **options: object) -> None:
        """All pockets of a release of the table of distributions: `debs` in the first, the others empty. Give the
        directory (or its URL) as mirror, and the signer's keyring as the recipe's `keyring`."""
        first, *others = release(distro, suite).pockets
        self.write(first.suite, debs, **options)  # type: ignore[arg-type]
        for pocket in others:
            self.write(pocket.suite, [], **options)  # type: ignore[arg-type]

    def _add(self, deb: Deb | Path) -> str:
        pool = self.root / "pool"
        pool.mkdir(parents=True, exist_ok=True)
        if isinstance(deb, Path):
            data = deb.read_bytes()
            control = subprocess.run(["dpkg-deb", "-f", deb], stdout=subprocess.PIPE, check=True).stdout.decode()
            fields = dict(re.findall(r"^(Package|Version|Architecture): (.*)$", control, re.MULTILINE))
            name = f"{fields['Package']}_{fields['Version'].replace(':', '.')}_{fields['Architecture']}.deb"
        else:
            data, control = deb.build(), deb.control()
            name = deb.filename.replace("%3a", ".")
        (pool / name).write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        return f"{control.rstrip()}\nFilename: pool/{name}\nSize: {len(data)}\nSHA256: {digest}\n"

    # ---- damage

    def inrelease(self, suite: str) -> Path:
        return self.root / "dists" / suite / "InRelease"

    def unsign(self, suite: str) -> None:
        """Leave the text of the Release, without a signature."""
        text = self.inrelease(suite).read_bytes()
        self.inrelease(suite).write_bytes(text.partition(b"\n\n")[2].partition(b"-----BEGIN PGP SIGNATURE")[0])

    def edit_release(self, suite: str, old: bytes, new: bytes) -> None:
        """Change what was signed, keeping the signature."""
        data = self.inrelease(suite).read_bytes()
        assert old in data
        self.inrelease(suite).write_bytes(data.replace(old, new, 1))

    def damage_index(self, suite: str, change: bytes = b"X") -> None:
        """Flip a byte of every form of every index, keeping their sizes."""
        for path in sorted((self.root / "dists" / suite).rglob("*")):
            if path.is_file() and path.name != "InRelease":
                data = path.read_bytes()
                path.write_bytes(data[:-1] + change)

    def package(self, name: str) -> Path:
        """The file of the package `name`."""
        return next((self.root / "pool").glob(f"{name}_*.deb"))


# ---- a server that can misbehave


class HttpServer:
    """Serves a directory with Range, keep-alive and these faults, which may be set at any time:

    `cut` maps a path to how many bytes of each answer are sent before the connection is closed (a list: one entry per
    request, then whole answers); `fail` maps a path to a list of status codes for its next requests, which
    `fail_headers` go with; `stall` is a set of paths that never answer; `ranges` False makes it ignore Range;
    `replace` maps a path to other bytes; `lengths` False leaves out Content-Length.
    `requests` lists (path, Range header) in order; `url` is where it serves.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = ""
        self.requests: list[tuple[str, str]] = []
        self.cut: dict[str, int | list[int]] = {}
        self.fail: dict[str, list[int]] = {}
        self.fail_headers: dict[str, str] = {}
        self.replace: dict[str, bytes] = {}
        self.stall: set[str] = set()
        self.ranges = True
        self.lengths = True
        self.stopping = threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer._answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._serving = answering(Handler)

    def __enter__(self) -> HttpServer:
        self.url = f"http://127.0.0.1:{self._serving.__enter__()}"
        return self

    def __exit__(self, *_error: object) -> None:
        self.stopping.set()
        self._serving.__exit__(None, None, None)

    def count(self, path: str) -> int:
        """How often `path` was asked for."""
        return sum(asked == path for asked, _ in self.requests)

    def _answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        path = handler.path
        span = handler.headers.get("Range", "")
        self.requests.append((path, span))
        if path in self.stall:
            self.stopping.wait()
        if self.fail.get(path):
            self._status(handler, self.fail[path].pop(0), self.fail_headers)
            return
        file = self.root / path.lstrip("/")
        if path not in self.replace and not file.is_file():
            self._status(handler, 404)
            return
        data = self.replace.get(path) or file.read_bytes()
        start = int(span.removeprefix("bytes=").partition("-")[0]) if span and self.ranges else 0
        if start and start >= len(data):
            self._status(handler, 416, {"Content-Range": f"bytes */{len(data)}"})
            return
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        if self.lengths:
            handler.send_header("Content-Length", str(len(data) - start))
        else:
            handler.send_header("Connection", "close")
            handler.close_connection = True
        handler.end_headers()
        self._send(handler, path, data[start:])

    def _send(self, handler: http.server.BaseHTTPRequestHandler, path: str, data: bytes) -> None:
        cut = self.cut.get(path)
        most = (cut.pop(0) if cut else None) if isinstance(cut, list) else cut
        try:
            handler.wfile.write(data if most is None else data[:most])
        except (BrokenPipeError, ConnectionResetError):
            handler.close_connection = True
        if most is not None and most < len(data):
            handler.close_connection = True

    def _status(self, handler: http.server.BaseHTTPRequestHandler, code: int, headers: Mapping[str, str] = {}) -> None:
        handler.send_response(code)
        for key, value in headers.items():
            handler.send_header(key, value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()


# ---- real packages, for tests that bootstrap a root (they need the network once)


def real_debs(cache: Path, names: Sequence[str] = (), *, distro: str = "debian", suite: str = "bookworm") -> list[Path]:
    """Real .deb files of the distribution: its base (Essential and required packages) and `names`, with all they depend
    on. Give them to Repository.write_distribution beside synthetic ones. Kept in `cache` between calls."""
    from vnfsbuild import config, family, fetch, progress
    from vnfsbuild.recipe import Distro, Recipe

    recipe = Recipe(cache / "none.toml", "none", Distro(distro, suite, "amd64"), ("usr-is-merged", *names))
    downloader = fetch.Downloader(cache)
    lock = family.get(distro).resolve(
        recipe, fetcher=downloader, mirrors=config.load().mirrors, monitor=progress.Silent()
    )
    found: list[Path] = []
    items = [(item.url, item.blob) for item in (*lock.packages, *lock.tools)]
    downloader.many(items, done=lambda _blob, path: found.append(path), advance=lambda _amount: None)
    return sorted(found)


# ---- apt itself, as the judge


class Apt:
    """The real apt-get, on an empty system of its own below `root`, with the repositories of `lines` (sources.list)."""

    def __init__(self, root: Path, lines: Sequence[str]) -> None:
        for name in ("state/lists/partial", "cache/archives/partial", "etc/parts"):
            (root / name).mkdir(parents=True)
        (root / "status").touch()
        (root / "sources.list").write_text("\n".join(lines) + "\n")
        options = {
            "Dir::Etc::SourceList": root / "sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::Etc::Parts": root / "etc/parts",
            "Dir::Etc::Preferences": "/dev/null",
            "Dir::Etc::PreferencesParts": "/dev/null",
            "Dir::State": root / "state",
            "Dir::State::status": root / "status",
            "Dir::Cache": root / "cache",
            "APT::Architecture": "amd64",
            "APT::Architectures": "amd64",
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
        }
        # APT_CONFIG is read before the parts of /etc, which -o comes too late to turn off.
        (root / "apt.conf").write_text("".join(f'{key} "{value}";\n' for key, value in options.items()))
        self._env = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "APT_CONFIG": str(root / "apt.conf")}
        self._run("update", "-qq")

    def _run(self, *words: str) -> str:
        done = subprocess.run(["apt-get", *words], env=self._env, capture_output=True, check=False, text=True)
        if done.returncode:
            raise AptFailed(done.stdout + done.stderr)
        return done.stdout

    def install(self, names: Sequence[str], *, recommends: bool = False) -> set[tuple[str, str]]:
        """Names and versions that apt-get would install. Raises AptFailed where it finds no way."""
        word = "--install-recommends" if recommends else "--no-install-recommends"
        text = self._run("-s", "install", word, *names)
        return set(re.findall(r"^Inst (\S+) \((\S+) ", text, re.MULTILINE))

    def straight(self, names: Sequence[str]) -> bool:
        """Whether apt gets there by following dependencies alone, without giving up an alternative on the way."""
        words = ("-s", "install", "--no-install-recommends", "-o", "Debug::pkgDepCache::Marker=1", *names)
        done = subprocess.run(["apt-get", *words], env=self._env, capture_output=True, check=False, text=True)
        return done.returncode == 0 and "can't be satisfied" not in done.stderr


class AptFailed(Exception):
    """apt-get said no."""


@contextmanager
def signer(home: Path, kind: str = "ed25519") -> Iterator[Signer]:
    """A key for the duration of a session: see the fixture `archive_key` in tests/conftest.py."""
    made = Signer(home, kind=kind)
    try:
        yield made
    finally:
        made.close()


def wait_until(condition: object, seconds: float = 5.0) -> None:
    """Wait until `condition()` holds."""
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that in time"
        time.sleep(0.01)
