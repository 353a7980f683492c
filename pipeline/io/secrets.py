"""Find credentials in URIs and property names, so that none is written anywhere."""

from __future__ import annotations

import re

from pipeline.errors import UserError


def refuse_secrets(uri: str, option: str) -> None:
    """Raise UserError if a URI holds what looks like credentials, since URIs are written to manifests, logs and pages."""
    scheme, _, rest = uri.partition("://")
    address, _, query = rest.partition("?")
    server, parameters = address.partition("/")[0], [parameter.partition("=")[0] for parameter in query.split("&")]
    # A secret may contain a slash, so for S3 neither "@" nor ":" may stand in what looks like the bucket.
    in_server = bool({"@", ":"} & set(server)) if scheme == "s3" else ":" in server.rpartition("@")[0]
    if in_server or any(names_secret(parameter) for parameter in parameters):
        raise UserError(
            f"{option} holds credentials; remove them from the URI. Credentials for S3 come from the environment "
            "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), a profile (AWS_PROFILE) or the machine's role"
        )


def names_secret(name: str) -> bool:
    """Return whether a parameter or property of this name probably holds a secret."""
    return re.search("passw|secret|token|credential|key|authorization|connection.string", name, re.IGNORECASE) is not None
