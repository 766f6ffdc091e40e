"""A provider that answers chat requests at once: what stands behind every gateway measured.

    python provider.py [PORT]

Whole answers in one write, streamed ones in a write for each of ten chunks. It reads of a request
only what it must: where it ends and whether it wants a stream. Prints its port and process id.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys

WORDS = 10

USAGE = b'"usage":{"prompt_tokens":9,"completion_tokens":10,"total_tokens":19}'
HEAD = b'"id":"chatcmpl-fake0001","created":1764400000,"model":"base","object":'
WHOLE = (
    b"{"
    + HEAD
    + b'"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"'
    + b"word " * WORDS
    + b'"},"finish_reason":"stop","logprobs":null}],'
    + USAGE
    + b"}"
)
CHUNK = b"data: {" + HEAD + b'"chat.completion.chunk","choices":[{"index":0,"delta":'
CHUNKS = [
    *[CHUNK + b'{"content":"word "},"finish_reason":null}]}\n\n'] * WORDS,
    CHUNK + b'{},"finish_reason":"stop"}]}\n\n',
    b"data: {" + HEAD + b'"chat.completion.chunk","choices":[],' + USAGE + b"}\n\n",
    b"data: [DONE]\n\n",
]


def _framed(part: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(part), part)


ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(WHOLE)
) + WHOLE
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
STREAM = [_framed(part) for part in CHUNKS]
STREAM[-1] += b"0\r\n\r\n"


class Provider(asyncio.Protocol):
    """One connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where answers go."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._read = b""

    def data_received(self, data: bytes) -> None:
        """Answer each request that is whole."""
        self._read += data
        while (end := self._read.find(b"\r\n\r\n")) >= 0:
            head = self._read[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            whole = end + 4 + length
            if len(self._read) < whole:
                return
            body, self._read = self._read[end + 4 : whole], self._read[whole:]
            self._answer(body)

    def _answer(self, body: bytes) -> None:
        if b'"stream":true' not in body and b'"stream": true' not in body:
            self._transport.write(ANSWER)
            return
        self._transport.write(STREAM_HEAD)
        for part in STREAM:
            self._transport.write(part)


async def main(port: int) -> None:
    """Serve until the process is ended."""
    server = await asyncio.get_running_loop().create_server(Provider, "127.0.0.1", port)
    found = {"port": server.sockets[0].getsockname()[1], "pid": os.getpid()}
    print(json.dumps(found), flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 0))
