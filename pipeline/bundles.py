"""Model bundles by URI."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pipeline.errors import UserError
from pipeline.io.location import open_location
from pipeline.model.bundle import FILES, Bundle, bundle_from_files


def read_bundle(uri: str, device: torch.device | str = "cpu") -> tuple[Mapping[str, bytes], Bundle]:
    """Read a bundle's files from a folder, and load the model to ``device``.

    Raises:
        UserError: there is no such folder, a file is missing or broken, or they do not belong together.
    """
    folder = open_location(uri, "--model.path")
    if not folder.exists():
        raise UserError(f"no model bundle at {uri}; set --model.path to a folder that jobs.train wrote")
    files = {name: folder.child(name).read() for name in FILES}
    return files, bundle_from_files(files, uri, device)
