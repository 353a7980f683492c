"""Read model bundles from any location."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pipeline.config.types import bundle_path
from pipeline.errors import UserError
from pipeline.io.location import open_location
from pipeline.model.bundle import FILES, Bundle, bundle_from_files


def read_bundle(
    uri: str, device: torch.device | str = "cpu", option: str = "--model.path"
) -> tuple[Mapping[str, bytes], Bundle]:
    """Read the files of a bundle, by name, and load its model to ``device``.

    Args:
        uri: A path or URI, or ``sample``.
        option: Option that sets the URI, for messages.

    Raises:
        UserError: The folder does not exist, a file is missing or broken, or the files do not belong together.
    """
    folder = open_location(bundle_path(uri), option)
    if not folder.exists():
        raise UserError(f"no model bundle at {uri}; set {option} to a folder that jobs.train wrote")
    files = {name: folder.child(name).read() for name in FILES}
    return files, bundle_from_files(files, uri, device)
