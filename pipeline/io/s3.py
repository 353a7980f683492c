"""S3 as a pyarrow filesystem that retries, with time limits."""

from __future__ import annotations

import os
from typing import Any

import pyarrow as pa
from pyarrow import fs

from pipeline.io.retry import STORAGE

S3_ATTEMPTS, S3_CONNECT_TIMEOUT_S, S3_REQUEST_TIMEOUT_S = 5, 3.0, 10.0
"""Of each request, with pauses of up to 1, 2, 4 and 8 seconds: what never answers is given up after a minute or so."""


_WHOLE_READ_BYTES = 2**18


class S3(fs.S3FileSystem):  # type: ignore[misc]
    """S3 for a run of hours, with what a URI says of the server.

    Each request is tried again where it fails for a moment; what pyarrow sends to another process forgets how often. Small
    files are written in one request.
    """

    def __init__(self, **of_uri: Any) -> None:
        if of_uri["endpoint_override"]:
            # Not every server but Amazon's knows the checksums that its library else writes after what is sent.
            os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
        own = {
            "retry_strategy": fs.AwsStandardS3RetryStrategy(max_attempts=S3_ATTEMPTS),
            "connect_timeout": S3_CONNECT_TIMEOUT_S,
            "request_timeout": S3_REQUEST_TIMEOUT_S,
            "allow_delayed_open": True,
        }
        super().__init__(**{**of_uri, **own})

    def open_input_file(self, path: str) -> pa.NativeFile:
        """A file to read; of a small one all is read at once.

        The library takes an answer of 503 to a read of fewer bytes than are in the answer for a fault of its own, which it does
        not try again ("Failed to flush response stream").
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


def open_s3(of_uri: dict[str, Any]) -> S3:
    return S3(**of_uri)
