"""A proxy for an S3 server on this machine that disturbs requests as networks and busy servers do.

It forwards requests unchanged, including the Host header, which the signature covers.
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
"""Disturbance of a request:

slow down: the answer is 503, and the server does not see the request.
lost before: no answer, and the server does not see the request.
lost after: no answer, but the server has executed the request.
cut off: half a body, that of the answer, or that of the request if the answer has none.
"""
FAULTS: tuple[Fault, ...] = ("slow down", "lost before", "lost after", "cut off")
ChooseFault = Callable[[str, str], Fault | None]
"""Chooses the fault of a request by its method, and its path with query."""

_SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code>'
    b"<Message>Please reduce your request rate.</Message></Error>"
)
_STATUSES_WITHOUT_BODY = {"204", "304"}


class RandomFaults:
    """Disturbs a share of all requests, with each fault equally often."""

    def __init__(self, share: float, seed: int) -> None:
        self._share, self._rng = share, random.Random(seed)

    def __call__(self, method: str, path: str) -> Fault | None:  # noqa: ARG002
        return self._rng.choice(FAULTS) if self._rng.random() < self._share else None


def no_faults(method: str, path: str) -> Fault | None:  # noqa: ARG001
    """Disturb no request."""
    return None


@dataclass
class FaultyProxy:
    """A running proxy.

    Attributes:
        server_port: port of the server.
        choose_fault: may be changed at any time.
        requests: number of requests so far, by method.
        faults: number of faults so far, by fault and method.
    """

    server_port: int
    choose_fault: ChooseFault = no_faults
    port: int = 0
    requests: Counter[str] = field(default_factory=Counter)
    faults: Counter[tuple[Fault, str]] = field(default_factory=Counter)

    @property
    def endpoint(self) -> str:
        """Value of ``AWS_ENDPOINT_URL`` for clients."""
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a client's connection until either side closes it."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while await self._forward(reader, writer):
                pass
        writer.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Forward one request and its answer, and return whether the connection stays open."""
        head = await reader.readuntil(b"\r\n\r\n")
        method, path, *_ = head.split(b"\r\n")[0].decode().split()
        headers = _parse_headers(head)
        if headers.get("expect"):
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            head = b"\r\n".join(line for line in head.split(b"\r\n") if not line.lower().startswith(b"expect:"))
        body = await _read_body(reader, headers)
        self.requests[method] += 1
        fault = self.choose_fault(method, path)
        if fault == "cut off" and method in ("HEAD", "DELETE"):  # neither request nor answer has a body
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
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self.server_port)
        try:
            if fault == "cut off" and body:
                to_server.write(head + body[: len(body) // 2])
                await to_server.drain()
                return False
            to_server.write(head + body)
            await to_server.drain()
            answer = await from_server.readuntil(b"\r\n\r\n")
            status, answer_headers = answer.split()[1].decode(), _parse_headers(answer)
            has_body = method != "HEAD" and status not in _STATUSES_WITHOUT_BODY
            content = await _read_body(from_server, answer_headers) if has_body else b""
        finally:
            to_server.close()
        if fault == "lost after":
            return False
        writer.write(answer + (content[: len(content) // 2] if fault == "cut off" else content))
        await writer.drain()
        return fault is None and answer_headers.get("connection") != "close"


def _parse_headers(head: bytes) -> dict[str, str]:
    pairs = (line.decode("latin-1").partition(":") for line in head.split(b"\r\n")[1:] if line)
    return {name.lower(): value.strip().lower() for name, _, value in pairs}


async def _read_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    """Return a body as it was sent, with its chunk sizes if it is chunked."""
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
def faulty_proxy(server_port: int) -> Iterator[FaultyProxy]:
    """Run a proxy for the server at this port of 127.0.0.1."""
    proxy = FaultyProxy(server_port)
    loop = asyncio.new_event_loop()
    listener = loop.run_until_complete(asyncio.start_server(proxy.serve, "127.0.0.1", 0))
    proxy.port = listener.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        listener.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()
