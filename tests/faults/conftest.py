"""A store of documents, and the output of a run over it that nothing befell."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway import PACKAGES, Gateway, gateway, is_installed
from stage import Command, write_store


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 documents, a tenth of which are none."""
    texts = [None if n % 10 == 3 else f"Document number {n} speaks of {'graphs and ' * (n % 11)}trees." for n in range(200)]
    return write_store(tmp_path_factory.mktemp("store") / "in", texts, 2)


@pytest.fixture(scope="session")
def options(tiny_bundle: Path) -> list[str]:
    resources = {"window_rows": 10, "actors": 1, "token_budget": 4096}
    return ["--model.path", str(tiny_bundle), *(f"--resources.{name}={value}" for name, value in resources.items())]


@pytest.fixture(scope="session")
def undisturbed(store: Path, options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    Command(store, output, options).finish()
    return output


@pytest.fixture(scope="session")
def s3() -> Iterator[Gateway]:
    """An S3 server that runs."""
    if not is_installed():
        pytest.skip(f"no S3 server is installed here: apt-get install --no-install-recommends {PACKAGES}")
    with gateway() as server:
        yield server


@pytest.fixture
def bucket(s3: Gateway) -> str:
    """The name of one of its buckets, which is empty."""
    name = f"tests-{uuid.uuid4().hex[:12]}"
    s3.filesystem().create_dir(name)
    return name
