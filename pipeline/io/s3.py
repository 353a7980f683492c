"""S3 as a pyarrow filesystem with retries and timeouts."""

from __future__ import annotations

import os
from typing import Any

import pyarrow as pa
from pyarrow import fs

from pipeline.io.retry import STORAGE

S3_ATTEMPTS, S3_CONNECT_TIMEOUT_S, S3_REQUEST_TIMEOUT_S = 5, 3.0, 10.0
"""Limits of each request. With pauses of up to 1, 2, 4 and 8 s, a request to a dead server fails after about a minute."""

_WHOLE_READ_BYTES = 2**18


class S3(fs.S3FileSystem):  # type: ignore[misc]
    """S3 filesystem that retries requests that fail for a moment, and writes a small file in one request.

    Unlike pyarrow's own class, it keeps its retries when it is pickled.

    Args:
        uri_options: arguments of ``pyarrow.fs.S3FileSystem`` that a URI sets, such as its region and endpoint.
    """

    def __init__(self, **uri_options: Any) -> None:
        if uri_options["endpoint_override"]:
            # By default, the AWS library appends checksums that servers other than Amazon's may not understand.
            os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
        run_options = {
            "retry_strategy": fs.AwsStandardS3RetryStrategy(max_attempts=S3_ATTEMPTS),
            "connect_timeout": S3_CONNECT_TIMEOUT_S,
            "request_timeout": S3_REQUEST_TIMEOUT_S,
            "allow_delayed_open": True,
        }
        super().__init__(**{**uri_options, **run_options})

    def open_input_file(self, path: str) -> pa.NativeFile:
        """Open a file for reading; a small file is read at once.

        If a read asks for fewer bytes than a 503 response has, the AWS library reports an internal failure ("Failed to flush
        response stream") and does not retry.
        """
        file = super().open_input_file(path)
        if (size := file.size()) > _WHOLE_READ_BYTES:
            return file
        with file:
            return STORAGE.run(
                lambda: pa.BufferReader(file.read_at(size, 0)), is_transient=lambda error: "INTERNAL_FAILURE" in str(error)
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return open_s3, super().__reduce__()[1]


def open_s3(uri_options: dict[str, Any]) -> S3:
    """Return ``S3(**uri_options)``; pickle needs a function."""
    return S3(**uri_options)
