"""Errors of the wire, shaped as OpenAI's, and failures of jobs.

ApiError      an answer {"error": {message, type, param, code}} with an HTTP status
JobFailure    a job ends as `failed` with a code; never an HTTP error
ServerError   the server cannot start as asked; for people at a terminal
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tuneproof_trainer.answers import ErrorAnswer

__all__ = [
    "ApiError",
    "JobFailure",
    "ServerError",
    "bad_request",
    "is_disk_full",
    "not_found",
]


class ApiError(Exception):
    """A request that is refused; the caller reads `status` and `code`."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.type = status, message, type
        self.param, self.code, self.headers = param, code, headers or {}

    def body(self) -> ErrorAnswer:
        """The error as the wire shows it."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


class JobFailure(Exception):
    """A job that cannot succeed; the code is one of the wire's."""

    def __init__(self, code: str, message: str, param: str | None = "training_file") -> None:
        super().__init__(message)
        self.code, self.message, self.param = code, message, param


class ServerError(Exception):
    """The server cannot start as asked."""


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """400: the request itself is at fault."""
    return ApiError(400, message, param=param, code=code)


def not_found(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """404: no such object for this key."""
    return ApiError(404, message, param=param, code=code)


def is_disk_full(error: BaseException) -> bool:
    """Whether a write failed for want of room: a full disk, a quota, a limit on a file's size."""
    return isinstance(error, OSError) and error.errno in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
    )
