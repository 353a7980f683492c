"""Real stores: an Iceberg catalog in SQLite, Delta tables and JSON lines in a folder, and a PostgreSQL server."""

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
from table_kinds import FIRST, KINDS, PASSWORD, PASSWORD_ENV, SECOND, Store, finish_run


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """What to connect to a server with; the password is in the environment."""
    places = [Path(found).resolve().parent for found in [shutil.which("initdb"), shutil.which("postgres")] if found]
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    programs = next((folder for folder in places if (folder / "initdb").exists() and (folder / "postgres").exists()), None)
    if programs is None:
        pytest.skip("no PostgreSQL server here: apt-get install postgresql")
    # The server does not run as root; a socket's path may have 107 bytes.
    user = "postgres" if os.getuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="nightshift-pg-", dir="/tmp") as folder:
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


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A store of each kind."""
    return Store(request.param, tmp_path / "store", request.getfixturevalue("postgres") if request.param == "postgres" else "")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Two runs; of d15 to d19, the second has the summaries that are to be found."""
    finish_run(tmp_path / "out", "a", FIRST)
    finish_run(tmp_path / "out", "b", SECOND)
    return tmp_path / "out"
