"""An S3 server on this machine: Ceph's object gateway, with the monitor and the object store daemon that it needs.

Install it with ``apt-get install --no-install-recommends radosgw ceph-mon ceph-osd``. All objects are in the memory of one
process and disappear with it.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pyarrow import fs

from pipeline.io.s3 import S3

PACKAGES = "radosgw ceph-mon ceph-osd"
_START_S = 60.0
_CONFIG = """
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon_port},v1:127.0.0.1:{mon_v1_port}]
public addr = 127.0.0.1
keyring = {folder}/keyring
run dir = {folder}
admin socket = {folder}/$name.asok
log file = {folder}/$name.log
pid file = {folder}/$name.pid
crash dir = {folder}
mon data = {folder}/mon
osd data = {folder}/osd
paxos propose interval = 0.02
paxos min wait = 0.01
mon osd min in ratio = 0
mon data avail warn = 0
mon data avail crit = 0
mon allow pool size one = true
mon max pg per osd = 1000
osd objectstore = memstore
memstore device bytes = 4294967296
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
rgw frontends = beast endpoint=127.0.0.1:{port}
rgw dynamic resharding = false
debug rgw = 0
debug beast = 0
"""


def is_installed() -> bool:
    """Return whether all of its programs are installed."""
    return all(map(shutil.which, ("setpriv", "ceph", "ceph-mon", "ceph-osd", "radosgw", "radosgw-admin")))


@dataclass
class S3Server:
    """A running server and its credentials, which are random."""

    folder: Path
    port: int
    access_key: str = field(default_factory=lambda: secrets.token_hex(10))
    secret_key: str = field(default_factory=lambda: secrets.token_hex(20))

    @property
    def credentials(self) -> dict[str, str]:
        """Environment variables of a client. It must not look for the role of a cloud machine."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def filesystem(self) -> fs.S3FileSystem:
        """Return its file system, which can create and delete buckets."""
        return S3(
            access_key=self.access_key,
            secret_key=self.secret_key,
            region="us-east-1",
            scheme="http",
            endpoint_override=f"127.0.0.1:{self.port}",
            allow_bucket_creation=True,
            allow_bucket_deletion=True,
        )


@contextlib.contextmanager
def s3_server() -> Iterator[S3Server]:
    """Run a server. Raises RuntimeError with its logs if it does not answer in time."""
    folder = Path(tempfile.mkdtemp(prefix="s3"))  # a short name: the path of a socket has at most 107 characters
    mon_port, mon_v1_port, port = _free_ports(3)
    server = S3Server(folder, port)
    fsid, osd = uuid.uuid4(), str(uuid.uuid4())
    config = folder / "ceph.conf"
    config.write_text(_CONFIG.format(fsid=fsid, folder=folder, mon_port=mon_port, mon_v1_port=mon_v1_port, port=port).lstrip())
    daemons: list[subprocess.Popen[bytes]] = []

    def run(program: str, *options: str) -> None:
        result = subprocess.run([program, "-c", str(config), *options], capture_output=True, text=True, timeout=_START_S)
        if result.returncode:
            raise RuntimeError(f"{program}: {result.stdout}{result.stderr}")

    def start(program: str, *options: str) -> None:
        with (folder / f"{program}.out").open("wb") as out:
            # pdeathsig: it must end with this process, even if this process is killed.
            command = ["setpriv", "--pdeathsig=KILL", program, "-c", str(config), "-f", *options]
            daemons.append(subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True))

    try:
        keyring = str(folder / "keyring")
        for number, name in enumerate(("mon.", "client.admin", "osd.0", "client.rgw")):
            command = ["ceph-authtool", *([] if number else ["--create-keyring"]), keyring, "--gen-key", "-n", name]
            capabilities = [word for part in ("mon", "osd", "mgr") for word in ("--cap", part, "allow *")]
            subprocess.run([*command, *capabilities], check=True, capture_output=True)
        addresses = f"[v2:127.0.0.1:{mon_port},v1:127.0.0.1:{mon_v1_port}]"
        monmap = str(folder / "monmap")
        create = ["monmaptool", "--create", "--addv", "a", addresses, "--fsid", str(fsid), monmap]
        subprocess.run(create, check=True, capture_output=True)
        for part in ("mon", "osd"):
            (folder / part).mkdir()
        run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)
        start("ceph-mon", "-i", "a")
        run("ceph", "osd", "new", osd)
        run("ceph-osd", "--mkfs", "-i", "0", "--osd-uuid", osd)
        start("ceph-osd", "-i", "0")
        start("radosgw", "-n", "client.rgw")
        user = ["--uid=tests", "--display-name=tests", f"--access-key={server.access_key}", f"--secret-key={server.secret_key}"]
        run("radosgw-admin", "-n", "client.rgw", "user", "create", *user)
        _await_answer(f"http://127.0.0.1:{port}/", folder, daemons)
        yield server
    finally:
        for process in reversed(daemons):
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _await_answer(url: str, folder: Path, daemons: list[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            if time.monotonic() > deadline or any(process.poll() is not None for process in daemons):
                logs = "".join(path.read_text(errors="replace")[-2000:] for path in folder.glob("*.out"))
                raise RuntimeError(f"the object gateway does not answer: {logs}") from None
            time.sleep(0.05)
