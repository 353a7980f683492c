"""A lease on an output folder: at most one driver writes there at a time, and a killed driver does not lock others out.

    lease/<random>.json    claim of one driver: who it is, and how often it has renewed the claim
    lease/holder           name of the claim that holds the lease

Acquire:
1. Watch the claims of other drivers until none is left. If one is renewed, or its process runs on this machine, fail. Remove it
   if its process ran on this machine and has ended, or if it is not renewed for ``EXPIRE_S``.
2. Write a claim, then list the folder. If there is another claim, remove the new one and start over after a pause. Of two
   drivers that claim at the same time, the one that lists last sees both claims, so they never both continue.
3. Write the name of the claim into ``holder``.

Keep:
1. Every ``RENEW_S``, check that the claim exists and is named in ``holder``. If not, another driver has removed it, because
   this one did not renew it in time: the lease is lost, and the run stops.
2. Rewrite the claim with a higher counter. A delayed write may restore a removed claim, but ``holder`` names the other driver.

Clocks of machines are never compared: a watcher measures with its own clock how long a claim does not change.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated

import psutil
from pydantic import Field, TypeAdapter, ValidationError

from pipeline.errors import Stopped, UserError
from pipeline.io.location import Location
from pipeline.io.retry import STORAGE, Backoff
from pipeline.runs.layout import LEASE

RENEW_S, EXPIRE_S = 5.0, 30.0
_CLAIM_CONFLICT = Backoff(attempts=5, pause_s=1.0, jitter=True)
_HOLDER = "holder"


@dataclass(frozen=True)
class Holder:
    """The driver that holds a lease, as written to its claim.

    Attributes:
        machine: Name and boot of the machine, and its namespace of process ids.
        born: When the process started, in a unit of the machine.
        renewals: How often the claim was renewed.
    """

    run_id: str
    machine: str
    pid: Annotated[int, Field(gt=0, lt=1 << 31)]
    born: float
    renewals: int = field(default=0, compare=False)

    @property
    def is_local(self) -> bool:
        """Whether the process is or was one of this machine since its last boot."""
        return self.machine == machine_id()

    @property
    def is_running(self) -> bool:
        """Whether a local process is still running."""
        try:
            return _process_start(self.pid) == self.born
        except psutil.NoSuchProcess:
            return False

    def __str__(self) -> str:
        return f"run {self.run_id}, process {self.pid} on {self.machine.partition(' ')[0]}"


_HOLDER_TYPE = TypeAdapter(Holder)


class Lease:
    """A lease that this process holds; ``hold`` creates it."""

    def __init__(self, folder: Location, name: str, holder: Holder) -> None:
        self._claim, self._owner = folder.child(name), holder
        self._holder, self._name = folder.child(_HOLDER), name.encode()
        self._released, self._lost = threading.Event(), threading.Event()
        self._renewals = 0
        self._thread = threading.Thread(target=self._renew_until_released, daemon=True)

    def check(self) -> None:
        """Raise Stopped if the lease is known to be lost."""
        if self._lost.is_set():
            raise Stopped(
                "another driver took over this output folder, because this one did not renew its lease in time; to resume, run "
                "the same command when the other driver has ended"
            )

    def verify(self) -> None:
        """Read the lease from storage; raise Stopped if it is lost, and UserError if storage does not answer."""
        if not STORAGE.run(self._is_held, is_transient=lambda error: isinstance(error, UserError)):
            self._lost.set()
        self.check()

    def start(self) -> None:
        """Become the holder and renew the claim in a thread."""
        self._holder.write(self._name)
        self._thread.start()

    def release(self) -> None:
        """Stop renewing and remove the claim. A storage error is ignored, because the claim expires anyway."""
        self._released.set()
        if self._thread.is_alive():
            self._thread.join()
        with suppress(UserError):
            if self._is_holder():
                self._holder.remove()
        with suppress(UserError):
            self._claim.remove()

    def _is_held(self) -> bool:
        return self._claim.exists() and self._is_holder()

    def _is_holder(self) -> bool:
        return self._holder.exists() and self._holder.read() == self._name

    def _renew_until_released(self) -> None:
        while not self._released.wait(RENEW_S):
            with suppress(UserError):  # storage may answer next time
                if not self._is_held():
                    self._lost.set()
                    return
                self._renewals += 1
                write_claim(self._claim, self._owner, self._renewals)


@contextmanager
def hold(output: Location, run_id: str) -> Iterator[Lease]:
    """Hold the lease on an output folder while the block runs. Raises UserError if another driver holds it."""
    folder, holder, name = output.child(LEASE), this_process(run_id), f"{uuid.uuid4().hex}.json"
    claim = folder.child(name)
    for _ in _CLAIM_CONFLICT:
        _wait_until_free(folder)
        write_claim(claim, holder, renewals=0)
        try:
            is_contested = any(other.endswith(".json") and other != name for other in folder.names())
        except BaseException:
            with suppress(UserError):
                claim.remove()
            raise
        if not is_contested:
            break
        claim.remove()
    else:
        raise UserError(f"several drivers are trying to write {output.uri} at the same time; start them one after another")
    lease = Lease(folder, name, holder)
    try:
        lease.start()
        yield lease
    finally:
        lease.release()


def current_holder(output: Location) -> Holder | None:
    """Return the driver that holds the lease, or that held it until it was killed."""
    folder = output.child(LEASE)
    claims = [claim for name in (folder.names()) if (claim := _read_claim(folder.child(name)))]
    return claims[0] if claims else None


def _wait_until_free(folder: Location) -> None:
    """Wait until all claims are released or expired; raise UserError if a driver is alive."""
    first_seen = dict[str, tuple[int, float]]()  # by claim: its counter, and when it was read
    while True:
        is_free = True
        for name in folder.names():
            if not name.endswith(".json") or (claim := _read_claim(folder.child(name))) is None:
                continue
            renewals, since_s = first_seen.setdefault(name, (claim.renewals, time.monotonic()))
            if claim.is_local and not claim.is_running:
                _remove_claim(folder, name)
            elif claim.is_local or renewals != claim.renewals:
                raise UserError(
                    f"{claim} is writing {folder.uri.rpartition('/')[0]}; wait until it ends, or set another --output.path"
                )
            elif time.monotonic() - since_s > EXPIRE_S:
                _remove_claim(folder, name)
            else:
                is_free = False
        if is_free:
            return
        time.sleep(RENEW_S / 5)


def _remove_claim(folder: Location, claim: str) -> None:
    """Remove a claim, and the partial file of a renewal that did not finish."""
    for name in folder.names():
        if name.startswith(claim):
            folder.child(name).remove()


def write_claim(claim: Location, holder: Holder, renewals: int) -> None:
    claim.write(json.dumps(asdict(replace(holder, renewals=renewals))).encode())


def _read_claim(claim: Location) -> Holder | None:
    """Read a claim; None if it has been removed or is not one."""
    try:
        return _HOLDER_TYPE.validate_json(claim.read())
    except (UserError, ValidationError):
        return None


def this_process(run_id: str) -> Holder:
    """Return this process as the holder of a lease."""
    return Holder(run_id, machine_id(), os.getpid(), _process_start(os.getpid()))


def machine_id() -> str:
    """Identify this machine since its last boot, and its namespace of process ids, of which each container has its own."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


def _process_start(pid: int) -> float:
    """Return when a process started, from the kernel if possible: psutil's time moves when the clock is set."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return psutil.Process(pid).create_time()
    if state == "Z":
        raise psutil.NoSuchProcess(pid)
    return float(fields[18])
