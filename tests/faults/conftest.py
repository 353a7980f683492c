"""Documents, the output of an uninterrupted run over them, and an S3 server."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_server import PACKAGES, S3Server, is_installed, s3_server
from summarize_command import SummarizeCommand, write_documents


@pytest.fixture(scope="session")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of 100 documents, of which a tenth have no text."""
    texts = [None if n % 10 == 3 else f"Document number {n} speaks of {'graphs and ' * (n % 11)}trees." for n in range(100)]
    return write_documents(tmp_path_factory.mktemp("documents") / "in", texts, 2)


@pytest.fixture(scope="session")
def options(tiny_bundle: Path) -> list[str]:
    """Options of jobs.summarize for small windows."""
    resources = {"window_rows": 10, "actors": 1, "token_budget": 4096}
    return ["--model.path", str(tiny_bundle), *(f"--resources.{name}={value}" for name, value in resources.items())]


@pytest.fixture(scope="session")
def uninterrupted(documents: Path, options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output of an uninterrupted run."""
    output = tmp_path_factory.mktemp("uninterrupted") / "out"
    SummarizeCommand(documents, output, options).finish()
    return output


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """A running S3 server."""
    if not is_installed():
        pytest.skip(f"no S3 server is installed: apt-get install --no-install-recommends {PACKAGES}")
    with s3_server() as server:
        yield server


@pytest.fixture
def bucket(s3: S3Server) -> str:
    """Name of an empty bucket on the server."""
    name = f"tests-{uuid.uuid4().hex[:12]}"
    s3.filesystem().create_dir(name)
    return name
