"""Run the application: until a signal, or in a thread beside a trial boot. Ends cleanly either way."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future

from aiohttp import web

from vnfsbuild.errors import HostError
from vnfsbuild.host.interrupt import resource

_PATIENCE = 3.0


async def _start(app: web.Application, host: str, port: int) -> tuple[web.AppRunner, int]:
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=_PATIENCE)
    await runner.setup()
    try:
        await web.TCPSite(runner, host or None, port).start()
    except OSError as error:
        await runner.cleanup()
        raise HostError(
            f"cannot listen on {host}:{port}: {error.strerror or error}", "--listen takes another address or port"
        ) from error
    return runner, int(runner.addresses[0][1])


def serve_forever(app: web.Application, host: str, port: int, *, ready: Callable[[int], None]) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP; `ready` hears the port. Transfers that run get a moment to end."""

    async def body() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        runner, bound = await _start(app, host, port)
        try:
            ready(bound)
            await stop.wait()
        finally:
            await runner.cleanup()

    asyncio.run(body())


@resource
def serving(app: web.Application, host: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """Serve in a thread while the context is open; yields the port (a free one for port 0)."""
    bound: Future[int] = Future()
    stop = asyncio.Event()
    loop = asyncio.new_event_loop()

    async def body() -> None:
        runner, number = await _start(app, host, port)
        try:
            bound.set_result(number)
            await stop.wait()
        finally:
            await runner.cleanup()

    def run() -> None:
        try:
            loop.run_until_complete(body())
        except BaseException as error:  # handed to whoever waits
            if not bound.done():
                bound.set_exception(error)
        finally:
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()

    thread = threading.Thread(target=run, name="vnfs-serve", daemon=True)
    thread.start()
    try:
        yield bound.result()
    finally:
        if not loop.is_closed():
            loop.call_soon_threadsafe(stop.set)
        thread.join()
