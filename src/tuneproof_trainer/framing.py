"""What uvicorn speaks HTTP by: what is no HTTP is refused in the shape that clients read."""

from __future__ import annotations

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tuneproof_trainer.errors import bad_request

__all__ = ["Protocol"]


class Protocol(HttpToolsProtocol):
    """HTTP as uvicorn speaks it, but for its refusals."""

    def send_400_response(self, msg: str) -> None:
        """Refuse what is framed wrongly and close the connection; never inside another answer."""
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering and not self.cycle.more_body:  # it came behind a whole request
            self.pipeline.clear()
            self.cycle.keep_alive = False
            self.flow.pause_reading()
            return
        if not (answering and self.cycle.response_started):
            self.transport.write(_refusal())
        self.transport.close()


def _refusal() -> bytes:
    error = bad_request("The request is not framed as HTTP/1.1 says.", code="bad_framing")
    body = orjson.dumps(error.body())
    head = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
    return head + b"content-length: %d\r\n\r\n" % len(body) + body
