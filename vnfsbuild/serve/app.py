"""The HTTP application that nodes boot from.

    GET  /blobs/sha256/<hex>     immutable bytes: Range, ETag, 304
    GET  /boot.ipxe[?mac=…]      the firmware's script; without a MAC address one that comes back with it
    GET  /nodes/<mac>/boot.ipxe  the same, for a known address
    POST /nodes/<mac>/report     what a node says of its boot (JSON, bounded)
    GET  /                       what is served, and what nodes reported, as JSON

Every request is hostile: names are digests or MAC addresses or nothing, sizes are bounded, files are never read whole.
Reports are what nodes (or anybody on that network) say, and are shown as such.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Protocol

from aiohttp import web

from vnfsbuild.errors import NotFound, TrustError, UsageError, VnfsError
from vnfsbuild.model import Reference
from vnfsbuild.serve import boot
from vnfsbuild.serve.catalog import Catalog, Served
from vnfsbuild.store.capsules import Store
from vnfsbuild.store.cas import digest_of
from vnfsbuild.store.manifest import Capsule

_MAX_REPORT = 16 << 10
_MAX_NODES = 20_000
_MAX_TEXT = 1000
_CHUNK = 1 << 20
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})\Z")
_IMMUTABLE = "public, max-age=31536000, immutable"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Assignment(Protocol):
    """Says which capsule a node boots. A database of nodes and groups is another implementation of it."""

    def __call__(self, mac: str) -> Reference | None:
        """The reference for the node with this MAC address, or None when nothing is meant for it."""


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """`capsule` is for every node unless `assign` is given. `url` is how nodes reach us (else: the Host they asked
    for); `mirrors` are further servers that hold the same digests. `report_log` gets a JSON line per report, `hear` a
    line of text for people."""

    capsule: Reference | None = None
    assign: Assignment | None = None
    ssh_keys: tuple[str, ...] = ()
    cmdline: str = ""
    url: str = ""
    mirrors: tuple[str, ...] = ()
    report_log: Path | None = None
    hear: Callable[[str], None] = lambda _line: None


def make_app(store: Store, config: ServeConfig) -> web.Application:
    """The application for a store. Raises UsageError when the configuration has words that iPXE would interpret."""
    boot.check_cmdline(config.cmdline)
    for url in (*((config.url,) if config.url else ()), *config.mirrors):
        boot.check_url(url)
    server = _Server(Catalog(store, config.ssh_keys), config)
    app = web.Application(client_max_size=_MAX_REPORT, middlewares=[_errors])
    app.router.add_get("/", server.status)
    app.router.add_get("/blobs/sha256/{hex:[0-9a-f]{64}}", server.blob)
    app.router.add_get("/boot.ipxe", server.script)
    app.router.add_get("/nodes/{mac}/boot.ipxe", server.script)
    app.router.add_post("/nodes/{mac}/report", server.report)
    return app


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except UsageError as error:
        return web.Response(status=400, text=f"{error}\n")
    except NotFound as error:
        return web.Response(status=404, text=f"{error}\n")
    except VnfsError as error:
        return web.Response(status=500, text=f"{error}\n")


class _Server:
    def __init__(self, catalog: Catalog, config: ServeConfig) -> None:
        self._catalog = catalog
        self._config = config
        self._nodes: OrderedDict[str, dict[str, str]] = OrderedDict()

    # ---- bytes

    async def blob(self, request: web.Request) -> web.StreamResponse:
        served = await asyncio.to_thread(self._catalog.find, f"sha256:{request.match_info['hex']}")
        etag = f'"{served.digest}"'
        headers = {"ETag": etag, "Cache-Control": _IMMUTABLE, "Accept-Ranges": "bytes"}
        if _names(request.headers.get("If-None-Match", ""), etag):
            return web.Response(status=304, headers=headers)
        # A range is of these bytes only; If-Range with another tag asks for the whole.
        wanted = request.headers.get("Range", "") if request.headers.get("If-Range", etag) == etag else ""
        start, end = _range(wanted, served.size)
        if start >= end and served.size:
            return web.Response(status=416, headers={"Content-Range": f"bytes */{served.size}"})
        if (start, end) != (0, served.size):
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{served.size}"
        response = web.StreamResponse(status=206 if "Content-Range" in headers else 200, headers=headers)
        response.content_type = "application/octet-stream"
        response.content_length = end - start
        return await self._send(request, response, served, start, end - start)

    @staticmethod
    async def _send(
        request: web.Request, response: web.StreamResponse, served: Served, start: int, count: int
    ) -> web.StreamResponse:
        if served.path is None:
            await response.prepare(request)
            if request.method != "HEAD":
                await response.write(served.data[start : start + count])
        else:
            with await asyncio.to_thread(_open, served) as stream:
                await response.prepare(request)
                if request.method != "HEAD" and count:
                    await _stream(request, response, stream, start, count)
        await response.write_eof()
        return response

    # ---- scripts

    async def script(self, request: web.Request) -> web.Response:
        base = self._config.url or f"http://{request.host}"
        asked = request.match_info.get("mac") or request.query.get("mac")
        if not asked:
            return _ipxe(boot.question(base))
        mac = boot.check_mac(asked)
        reference = self._config.assign(mac) if self._config.assign else self._config.capsule
        if reference is None:
            self._config.hear(f"{mac} asks for a capsule; none is meant for it")
            return _ipxe(boot.refusal(mac))
        capsule = await asyncio.to_thread(self._catalog.capsule, reference)
        self._config.hear(f"{mac} boots {capsule.reference}")
        return _ipxe(self._script(capsule, mac, base))

    def _script(self, capsule: Capsule, mac: str, base: str) -> str:
        return boot.script(
            capsule,
            mac,
            base=base,
            servers=(base, *self._config.mirrors),
            plan_digest=digest_of(boot.plan(capsule)),
            files_digest=self._catalog.files.digest if self._catalog.files else "",
            cmdline=self._config.cmdline,
        )

    # ---- reports

    async def report(self, request: web.Request) -> web.Response:
        mac = boot.check_mac(request.match_info["mac"])
        try:
            said = json.loads(await request.read())
            if not isinstance(said, dict):
                raise TypeError("it is not an object")
        except (ValueError, TypeError, RecursionError) as error:
            raise UsageError(f"this is not a report: {error}") from error
        record = {key: str(said.get(key, ""))[:_MAX_TEXT] for key in ("event", "message", "plan")}
        record["time"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._nodes[mac] = record
        self._nodes.move_to_end(mac)
        if len(self._nodes) > _MAX_NODES:
            self._nodes.popitem(last=False)
        if self._config.report_log:
            await asyncio.to_thread(_append, self._config.report_log, {"node": mac, **record})
        words = f"{record['event']}: {record['message']}"
        self._config.hear(f"{mac} reports {''.join(c if c.isprintable() else ' ' for c in words)}")
        return web.Response(status=204)

    async def status(self, _request: web.Request) -> web.Response:
        capsules = await asyncio.to_thread(self._catalog.capsules)
        document: dict[str, Any] = {
            "capsules": [{"capsule": each.reference, "manifest": each.digest} for each in capsules],
            "damaged": list(self._catalog.damaged()),
            "default": str(self._config.capsule) if self._config.capsule else None,
            "nodes": dict(self._nodes),
        }
        return web.json_response(document, headers={"Cache-Control": "no-store"})


def _names(header: str, etag: str) -> bool:
    return any(word.strip().removeprefix("W/") in {etag, "*"} for word in header.split(","))


def _range(header: str, size: int) -> tuple[int, int]:
    """First byte and the one after the last of a Range header; several ranges or other units mean the whole
    (RFC 9110, 14.2). An empty result cannot be satisfied."""
    found = _RANGE.match(header)
    if not found or found.group(0) == "bytes=-":
        return 0, size
    first, last = found.groups()
    if not first:
        return max(size - int(last), 0) if int(last) else size, size
    if last and int(last) < int(first):
        return 0, size
    return min(int(first), size), min(int(last) + 1, size) if last else size


def _open(served: Served) -> IO[bytes]:
    assert served.path is not None
    try:
        stream = served.path.open("rb")
    except FileNotFoundError:
        raise TrustError(f"{served.digest} is missing from the store") from None
    if stream.seek(0, 2) != served.size:
        stream.close()
        raise TrustError(f"{served.digest} is damaged in the store: its size is wrong")
    return stream


async def _stream(
    request: web.Request, response: web.StreamResponse, stream: IO[bytes], start: int, count: int
) -> None:
    """From the page cache to the socket in the kernel where the transport can, else in pieces."""
    if request.transport is None:
        raise ConnectionResetError
    with suppress(NotImplementedError):
        await asyncio.get_running_loop().sendfile(request.transport, stream, start, count, fallback=False)
        return
    stream.seek(start)
    while count and (piece := await asyncio.to_thread(stream.read, min(_CHUNK, count))):
        await response.write(piece)
        count -= len(piece)


def _ipxe(text: str) -> web.Response:
    return web.Response(text=text, content_type="text/plain", headers={"Cache-Control": "no-store"})


def _append(path: Path, record: dict[str, str]) -> None:
    try:
        with open(path, "a", encoding="utf-8") as log:
            log.write(json.dumps(record, sort_keys=True) + "\n")
    except OSError as error:
        raise VnfsError(f"cannot write the log of reports {path}: {error.strerror}") from error
