"""A registry in memory that follows the distribution specification where docker-registry does not, or misbehaves on
request: for what a client must withstand and no real server does on purpose."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, urlsplit

from tests.support.http import answering


@dataclass
class Stranger:
    """`habits` are words the handler knows (see there); `seen` what was asked: (method, path, headers)."""

    habits: set[str] = field(default_factory=set)
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, bytearray] = field(default_factory=dict)
    seen: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    port: int = 0
    elsewhere: str = ""

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def once(self, habit: str) -> bool:
        """Whether the habit is there; it is dropped."""
        if habit in self.habits:
            self.habits.discard(habit)
            return True
        return False


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    me: Stranger

    def log_message(self, format: str, *args: object) -> None:
        pass

    def answer(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        headers.setdefault("Content_Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle_any(self) -> None:
        parts = urlsplit(self.path)
        me, path = self.me, parts.path
        me.seen.append((self.command, self.path, dict(self.headers)))
        size = int(self.headers.get("Content-Length") or 0)
        if path == "/token":
            return self.answer(200, b'{"token":"right"}')
        if "bearer" in me.habits and self.headers.get("Authorization") != "Bearer right":
            self.rfile.read(size)
            realm = f'Bearer realm="http://{me.host}/token",service="test",scope="repository:demo:pull,push"'
            return self.answer(401, WWW_Authenticate=realm)
        if me.once("busy"):
            self.rfile.read(size)
            return self.answer(429, Retry_After="1")
        if "/blobs/uploads/" in path:
            return self.upload(path, parse_qs(parts.query), size)
        if "/manifests/" in path:
            return self.manifest(path.rsplit("/", 1)[1], size)
        return self.blob(path.rsplit("/", 1)[1])

    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = handle_any

    def manifest(self, tag: str, size: int) -> None:
        if self.command == "PUT":
            self.me.manifests[tag] = self.rfile.read(size)
            return self.answer(201)
        if "flood" in self.me.habits:
            return self.answer(200, b" " * (5 << 20))
        data = self.me.manifests[tag]
        promised = hashlib.sha256(data + (b"x" if "lying header" in self.me.habits else b"")).hexdigest()
        return self.answer(200, data, Docker_Content_Digest=f"sha256:{promised}")

    def blob(self, digest: str) -> None:
        me, data = self.me, self.me.blobs.get(digest)
        if data is None:
            return self.answer(404, b'{"errors":[{"code":"BLOB_UNKNOWN","message":"no \x1b[31mblob"}]}')
        if me.elsewhere and self.command == "GET":
            return self.answer(307, Location=f"{me.elsewhere}{self.path}")
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        if "wrong range" in me.habits and start:
            return self.answer(206, data[start:], Content_Range=f"bytes 0-{len(data) - 1}/{len(data)}")
        if "endless" in me.habits and self.command == "GET":
            return self.answer(200, data + b"x" * (1 << 20))
        if "gzip" in me.habits and self.command == "GET":
            return self.answer(200, data, Content_Encoding="gzip")
        if "no range" in me.habits or not start:
            return self.answer(200, data)
        return self.answer(206, data[start:], Content_Range=f"bytes {start}-{len(data) - 1}/{len(data)}")

    def upload(self, path: str, query: dict[str, list[str]], size: int) -> None:
        me, name = self.me, path.rsplit("/", 1)[1]
        if self.command == "POST":
            name = str(len(me.uploads))
            me.uploads[name] = bytearray()
            return self.answer(202, Location=f"{path}{name}?state=a%20b")
        held = me.uploads[name]
        where = {"Location": f"{path}?state=a%20b", "Range": f"0-{max(0, len(held) - 1)}"}
        if self.command == "GET":
            return self.answer(204, **where)
        if self.command == "PATCH" and "whole only" in me.habits:
            self.rfile.read(size)
            return self.answer(405)
        if self.command == "PATCH" and me.once("cut upload"):
            held += self.rfile.read(size // 2)
            self.close_connection = True
            return self.connection.close()
        held += self.rfile.read(size)
        if self.command == "PATCH":
            return self.answer(202, Location=where["Location"], Range=f"0-{len(held) - 1}")
        digest = query["digest"][0]
        if digest != f"sha256:{hashlib.sha256(held).hexdigest()}" or query.get("state") != ["a b"]:
            return self.answer(400, b'{"errors":[{"code":"DIGEST_INVALID","message":"no"}]}')
        me.blobs[digest] = bytes(held)
        return self.answer(201)


@contextmanager
def stranger(*habits: str) -> Iterator[Stranger]:
    """Serve on loopback until the context ends."""
    me = Stranger(set(habits))
    with answering(type("Handler", (_Handler,), {"me": me})) as me.port:
        yield me
