"""Credentials in URIs and property names: find them, so that none is written anywhere."""

from __future__ import annotations

import re

from pipeline.errors import UserError


def refuse_secrets(uri: str, option: str) -> None:
    """UserError, which does not repeat them, if a URI holds any: it is written to manifests, logs and pages."""
    if holds_secrets(uri):
        raise UserError(
            f"{option} holds credentials, which do not belong in a URI: take them out, and give those of S3 in the environment "
            "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), a profile (AWS_PROFILE) or by the machine's role"
        )


def holds_secrets(uri: str) -> bool:
    """Whether there is a password, or what looks like one, in a URI."""
    scheme, _, rest = uri.partition("://")
    address, _, query = rest.partition("?")
    server, names = address.partition("/")[0], [each.partition("=")[0] for each in query.split("&")]
    # A secret may have a slash in it, and then what comes before that is no bucket's name either.
    in_server = bool({"@", ":"} & set(server)) if scheme == "s3" else ":" in server.rpartition("@")[0]
    return in_server or any(names_secret(name) for name in names)


def names_secret(name: str) -> bool:
    """Whether a parameter or property of this name holds what nobody else is to read."""
    return re.search("passw|secret|token|credential|key|authorization|connection.string", name, re.IGNORECASE) is not None
