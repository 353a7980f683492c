"""One driver at a time writes to an output folder, and a killed driver does not lock others out."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from pipeline.errors import Stopped, UserError
from pipeline.io.location import Location, open_location
from pipeline.runs import lease

HOLD = """\
import sys, time
from pipeline.io.location import open_location
from pipeline.runs.lease import hold
with hold(open_location(sys.argv[1], "--output.path"), "other"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def output(tmp_path: Path) -> Location:
    return open_location(str(tmp_path), "--output.path")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 0.1)
    monkeypatch.setattr(lease, "EXPIRE_S", 0.6)


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the drivers of this process take each other for drivers on other machines."""
    monkeypatch.setattr(lease.Holder, "is_local", property(lambda _: False))


def start_other_driver(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_second_driver_fails_until_the_first_has_ended(tmp_path: Path, output: Location) -> None:
    other = start_other_driver(tmp_path)
    try:
        with (
            pytest.raises(UserError, match=rf"run other, process {other.pid} on .*{tmp_path}.*--output\.path"),
            lease.hold(output, "r"),
        ):
            pass
    finally:
        other.send_signal(signal.SIGKILL)
        while psutil.Process(other.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
    with lease.hold(output, "r"):  # although the other process is still a zombie
        assert lease.current_holder(output) == lease.this_process("r")
    other.wait()
    assert lease.current_holder(output) is None


def write_remote_claim(tmp_path: Path, renewals: int) -> None:
    (tmp_path / "lease").mkdir(exist_ok=True)
    values = {"run_id": "far", "machine": "elsewhere 1", "pid": 1, "born": 1.0, "renewals": renewals}
    partial = tmp_path / "lease/writing"
    partial.write_text(json.dumps(values))
    partial.replace(tmp_path / "lease/far.json")
    (tmp_path / "lease/far.json.0.part").write_text("{")


@pytest.mark.usefixtures("quick")
def test_claim_that_is_not_renewed_expires(tmp_path: Path, output: Location) -> None:
    write_remote_claim(tmp_path, 7)
    started_s = time.monotonic()
    with lease.hold(output, "r"):
        assert time.monotonic() - started_s > lease.EXPIRE_S
        assert not list((tmp_path / "lease").glob("far*"))


@pytest.mark.usefixtures("quick")
def test_claim_that_is_renewed_does_not_expire(tmp_path: Path, output: Location) -> None:
    with ThreadPoolExecutor(1) as pool:
        write_remote_claim(tmp_path, 0)

        def renew() -> None:
            for renewals in range(1, 12):
                time.sleep(0.1)
                write_remote_claim(tmp_path, renewals)

        renewing = pool.submit(renew)
        with pytest.raises(UserError, match="run far, process 1 on elsewhere"), lease.hold(output, "r"):
            pass
        renewing.result()


@pytest.mark.usefixtures("quick")
def test_claim_that_appears_while_waiting_is_watched_as_long(output: Location) -> None:
    """Another watcher was quicker, and has not renewed its claim yet."""
    killed, other = lease.Holder("killed", "machine 1", 1, 0.0), lease.Holder("other", "machine2 1", 2, 0.0)
    lease.write_claim(output.child("lease/killed.json"), killed, 0)

    def take_over() -> None:
        time.sleep(0.5)
        lease.write_claim(output.child("lease/other.json"), other, 0)
        time.sleep(0.4)
        lease.write_claim(output.child("lease/other.json"), other, 1)

    with ThreadPoolExecutor() as pool:
        taking_over = pool.submit(take_over)
        with pytest.raises(UserError, match="run other, process 2 on machine2"), lease.hold(output, "r"):
            pass
        taking_over.result()
    assert output.child("lease").names() == ["other.json"]


@pytest.mark.usefixtures("quick")
def test_driver_stops_when_its_claim_is_removed(tmp_path: Path, output: Location) -> None:
    with lease.hold(output, "r") as held:
        held.verify()
        time.sleep(0.3)
        [claim] = (tmp_path / "lease").glob("*.json")
        assert json.loads(claim.read_text())["renewals"] > 0
        claim.unlink()
        with pytest.raises(Stopped, match="another driver"):
            held.verify()
        with pytest.raises(Stopped, match="another driver"):
            held.check()
        time.sleep(0.3)
        assert not claim.exists(), "a lost claim is not renewed"


@pytest.mark.usefixtures("quick", "remote")
def test_simultaneous_drivers_never_hold_the_lease_together(output: Location) -> None:
    holders, max_holders = [0], [0]

    def hold(number: int) -> bool:
        try:
            with lease.hold(output, str(number)):
                holders[0] += 1
                max_holders[0] = max(max_holders[0], holders[0])
                time.sleep(0.3)
                holders[0] -= 1
        except UserError:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        succeeded = list(pool.map(hold, range(6)))
    assert max_holders == [1]
    assert any(succeeded)


@pytest.mark.usefixtures("quick", "remote")
def test_delayed_renewal_does_not_take_the_lease_back(output: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver is suspended while it renews its claim, and another driver takes over."""
    write_claim, resume = lease.write_claim, threading.Event()

    def suspended_write(claim: Location, holder: lease.Holder, renewals: int) -> None:
        if renewals and holder.run_id == "first":
            resume.wait()
        write_claim(claim, holder, renewals)

    monkeypatch.setattr(lease, "write_claim", suspended_write)
    with lease.hold(output, "first") as first, lease.hold(output, "second") as second:
        resume.set()
        time.sleep(0.3)
        with pytest.raises(Stopped, match="another driver"):
            first.verify()
        second.verify()
