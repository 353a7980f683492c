"""One driver at a time writes an output folder, and one that died keeps nobody out."""

from __future__ import annotations

import json
import os
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

HOLD = "import sys,time; from pipeline.inference.lease import held; from pipeline.storage import place\n"
HOLD += "with held(place(sys.argv[1], '--output.path'), 'theirs'):\n    print('held', flush=True); time.sleep(600)"


@pytest.fixture
def output(tmp_path: Path) -> Location:
    return open_location(str(tmp_path), "--output.path")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 0.1)
    monkeypatch.setattr(lease, "EXPIRE_S", 0.6)


def holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_driver_is_told_who_holds_it(tmp_path: Path, output: Location) -> None:
    other = holder(tmp_path)
    try:
        with (
            pytest.raises(UserError, match=rf"run theirs, process {other.pid} on .* is writing {tmp_path}; wait"),
            lease.hold(output, "r"),
        ):
            pass
    finally:
        other.send_signal(signal.SIGKILL)
        while psutil.Process(other.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
    with lease.hold(output, "r"):  # though nobody has taken note of its end: it is a zombie
        assert lease.current_holder(output) == lease.Holder(
            "r", lease._machine_id(), os.getpid(), lease._process_start(os.getpid())
        )
    other.wait()
    assert lease.current_holder(output) is None


def claim_of_another_machine(tmp_path: Path, renewals: int) -> None:
    (tmp_path / "lease").mkdir(exist_ok=True)
    values = {"run_id": "far", "machine": "elsewhere 1", "pid": 1, "born": 1.0, "renewals": renewals}
    written = tmp_path / "lease/writing"
    written.write_text(json.dumps(values))
    written.replace(tmp_path / "lease/far.json")
    (tmp_path / "lease/far.json.0.part").write_text("{")


@pytest.mark.usefixtures("quick")
def test_a_claim_that_stays_as_it_is_expires(tmp_path: Path, output: Location) -> None:
    claim_of_another_machine(tmp_path, 7)
    started = time.monotonic()
    with lease.hold(output, "r"):
        assert time.monotonic() - started > lease.EXPIRE_S
        assert not list((tmp_path / "lease").glob("far*"))


@pytest.mark.usefixtures("quick")
def test_a_claim_that_is_renewed_elsewhere_holds(tmp_path: Path, output: Location) -> None:
    with ThreadPoolExecutor(1) as pool:
        claim_of_another_machine(tmp_path, 0)

        def renew() -> None:
            for renewals in range(1, 12):
                time.sleep(0.1)
                claim_of_another_machine(tmp_path, renewals)

        renewing = pool.submit(renew)
        with pytest.raises(UserError, match="run far, process 1 on elsewhere is writing"), lease.hold(output, "r"):
            pass
        renewing.result()


@pytest.mark.usefixtures("quick")
def test_a_claim_that_was_made_meanwhile_is_watched_as_long(output: Location) -> None:
    """Of another watcher, that was quicker, and whose first renewal is yet to come."""
    gone, other = lease.Holder("gone", "far away", 1, 0.0), lease.Holder("other", "further away", 2, 0.0)
    lease._write_claim(output.child("lease/gone.json"), gone, 0)

    def take_over() -> None:
        time.sleep(0.5)
        lease._write_claim(output.child("lease/other.json"), other, 0)
        time.sleep(0.4)
        lease._write_claim(output.child("lease/other.json"), other, 1)

    with ThreadPoolExecutor() as pool:
        taking_over = pool.submit(take_over)
        with pytest.raises(UserError, match="run other, process 2 on further is writing"), lease.hold(output, "r"):
            pass
        taking_over.result()
    assert output.child("lease").names() == ["other.json"]


@pytest.mark.usefixtures("quick")
def test_a_driver_that_was_taken_over_ends(tmp_path: Path, output: Location) -> None:
    with lease.hold(output, "r") as mine:
        mine.verify()
        time.sleep(0.3)
        [claim] = (tmp_path / "lease").glob("*.json")
        assert json.loads(claim.read_text())["renewals"] > 0
        claim.unlink()
        with pytest.raises(Stopped, match="another driver took this output folder over"):
            mine.verify()
        with pytest.raises(Stopped, match="another driver"):
            mine.check()
        time.sleep(0.3)
        assert not claim.exists(), "it is not written again"


@pytest.mark.usefixtures("quick")
def test_of_many_that_begin_at_once_no_two_hold_it(output: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease.Holder, "is_here", property(lambda _: False))  # or each would see that the others are itself
    holding, most = [0], [0]

    def hold(number: int) -> bool:
        try:
            with lease.hold(output, str(number)):
                holding[0] += 1
                most[0] = max(most[0], holding[0])
                time.sleep(0.3)
                holding[0] -= 1
        except UserError:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        held = list(pool.map(hold, range(6)))
    assert most == [1]
    assert any(held)


@pytest.mark.usefixtures("quick")
def test_a_renewal_that_comes_late_takes_nobodys_lease(output: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a driver that was stopped, or cut off from the storage, while it wrote its claim anew, and was taken over."""
    write, late = lease._write_claim, threading.Event()

    def stopped_at_its_renewal(claim: Location, holder: lease.Holder, renewals: int) -> None:
        if renewals and holder.run_id == "first":
            late.wait()
        write(claim, holder, renewals)

    monkeypatch.setattr(lease, "_write_claim", stopped_at_its_renewal)
    monkeypatch.setattr(lease.Holder, "is_here", property(lambda _: False))
    with lease.hold(output, "first") as first, lease.hold(output, "second") as second:
        late.set()
        time.sleep(0.3)
        with pytest.raises(Stopped, match="another driver"):
            first.verify()
        second.verify()
