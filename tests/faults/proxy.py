"""A proxy on this machine before an S3 server, which does to requests what networks and busy servers do to some of them.

It passes requests on as they are, the Host header too: a signature covers it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

Fault = Literal["slow down", "lost before", "lost after", "cut off"]
"""The server was told nothing, and 503 is the answer; or none comes; or none comes, and the server has done it; or a body ends
midway: that of the answer, or of a request whose answer has none."""
FAULTS: tuple[Fault, ...] = ("slow down", "lost before", "lost after", "cut off")
Choice = Callable[[str, str], Fault | None]
"""What befalls a request, by its method, and its path and query."""

_SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code>'
    b"<Message>Please reduce your request rate.</Message></Error>"
)
_NO_BODY = {"204", "304"}


class Chance:
    """Each request suffers a fault, one as often as another, by this chance."""

    def __init__(self, share: float, seed: int) -> None:
        self._share, self._random = share, random.Random(seed)

    def __call__(self, method: str, path: str) -> Fault | None:  # noqa: ARG002
        return self._random.choice(FAULTS) if self._random.random() < self._share else None


def sound(method: str, path: str) -> Fault | None:  # noqa: ARG001
    """No request suffers anything."""
    return None


@dataclass
class Proxy:
    """Runs. requests: so far, by method; faults: by kind and method. choose: may be changed."""

    server: int
    choose: Choice = sound
    port: int = 0
    requests: Counter[str] = field(default_factory=Counter)
    faults: Counter[tuple[Fault, str]] = field(default_factory=Counter)

    @property
    def endpoint(self) -> str:
        """For ``AWS_ENDPOINT_URL``."""
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A client's connection, until either side ends it."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while await self._pass_on(reader, writer):
                pass
        writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; whether the connection lives on."""
        head = await reader.readuntil(b"\r\n\r\n")
        method, path, *_ = head.split(b"\r\n")[0].decode().split()
        headers = _headers(head)
        if headers.get("expect"):
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            head = b"\r\n".join(line for line in head.split(b"\r\n") if not line.lower().startswith(b"expect:"))
        body = await _body(reader, headers)
        self.requests[method] += 1
        fault = self.choose(method, path)
        if fault == "cut off" and method in ("HEAD", "DELETE"):  # no bodies
            fault = "lost after"
        if fault:
            self.faults[fault, method] += 1
        if fault == "slow down":
            length = 0 if method == "HEAD" else len(_SLOW_DOWN)
            lines = ["HTTP/1.1 503 Slow Down", "Content-Type: application/xml", f"Content-Length: {length}", "", ""]
            writer.write("\r\n".join(lines).encode() + _SLOW_DOWN[:length])
            await writer.drain()
            return True
        if fault == "lost before":
            return False
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self.server)
        try:
            if fault == "cut off" and body:
                to_server.write(head + body[: len(body) // 2])
                await to_server.drain()
                return False
            to_server.write(head + body)
            await to_server.drain()
            answer = await from_server.readuntil(b"\r\n\r\n")
            status, said = answer.split()[1].decode(), _headers(answer)
            content = b"" if method == "HEAD" or status in _NO_BODY else await _body(from_server, said)
        finally:
            to_server.close()
        if fault == "lost after":
            return False
        writer.write(answer + (content[: len(content) // 2] if fault == "cut off" else content))
        await writer.drain()
        return fault is None and said.get("connection") != "close"


def _headers(head: bytes) -> dict[str, str]:
    pairs = (line.decode("latin-1").partition(":") for line in head.split(b"\r\n")[1:] if line)
    return {name.lower(): value.strip().lower() for name, _, value in pairs}


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    """As it came, in chunks if it did."""
    if headers.get("transfer-encoding") != "chunked":
        return await reader.readexactly(int(headers.get("content-length", 0)))
    content = b""
    while True:
        line = await reader.readuntil(b"\r\n")
        size = int(line.split(b";")[0], 16)
        content += line + (await reader.readexactly(size) if size else b"") + await reader.readuntil(b"\r\n")
        if not size:
            return content


@contextlib.contextmanager
def proxy(server: int, choose: Choice = sound) -> Iterator[Proxy]:
    """Before the server at this port of 127.0.0.1, while the block runs."""
    here = Proxy(server, choose)
    loop = asyncio.new_event_loop()
    listening = loop.run_until_complete(asyncio.start_server(here.serve, "127.0.0.1", 0))
    here.port = listening.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield here
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        listening.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()
