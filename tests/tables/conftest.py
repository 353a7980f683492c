"""Real tables: an Iceberg catalog in SQLite, Delta tables and JSON lines in a folder, and a PostgreSQL server."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from native_tables import FIRST_RUN, PASSWORD, PASSWORD_ENV, SECOND_RUN, TABLE_TYPES, NativeTables, finish_run


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Connection string of a running server. The password is in the environment."""
    programs = _postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    user = "postgres" if os.getuid() == 0 else None  # the server refuses to run as root
    with tempfile.TemporaryDirectory(prefix="nightshift-pg-", dir="/tmp") as folder:  # the path of a socket is short
        if user:
            shutil.chown(folder, user)
        Path(folder, "password").write_text(PASSWORD)
        Path(folder, "password").chmod(0o644)
        os.environ[PASSWORD_ENV] = PASSWORD
        data, options = f"{folder}/data", ["-U", "night", "-A", "scram-sha-256", "--pwfile", f"{folder}/password", "--no-sync"]
        subprocess.run([programs / "initdb", "-D", data, "-E", "UTF8", *options], user=user, check=True, capture_output=True)
        server = subprocess.Popen(
            [programs / "postgres", "-D", data, "-k", folder, "-c", "listen_addresses=", "-c", "fsync=off"],
            user=user,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            connection = f"host={folder} user=night dbname=postgres"
            for _ in range(100):
                try:
                    psycopg.connect(connection, password=PASSWORD).close()
                    break
                except psycopg.OperationalError:
                    time.sleep(0.1)
            yield connection
        finally:
            server.terminate()
            server.wait(30)


def _postgres_programs() -> Path | None:
    """Return the folder of initdb and postgres, which Debian does not add to PATH."""
    folders = [Path(path).resolve().parent for path in [shutil.which("initdb"), shutil.which("postgres")] if path]
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((folder for folder in folders if (folder / "initdb").exists() and (folder / "postgres").exists()), None)


@pytest.fixture(params=TABLE_TYPES)
def tables(request: pytest.FixtureRequest, tmp_path: Path) -> NativeTables:
    """Tables of each type. ``indirect=["tables"]`` selects types."""
    connection = request.getfixturevalue("postgres") if request.param == "postgres" else ""
    return NativeTables(request.param, tmp_path / "tables", connection)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """An output folder with runs a and b. Both have summaries for d15 to d19."""
    finish_run(tmp_path / "out", "a", FIRST_RUN)
    finish_run(tmp_path / "out", "b", SECOND_RUN)
    return tmp_path / "out"
