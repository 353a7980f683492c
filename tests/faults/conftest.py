"""A store of documents, and the output of a run over it that nothing befell."""

from __future__ import annotations

from pathlib import Path

import pytest
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
