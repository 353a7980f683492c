"""A lease on an output folder: one driver at a time writes there, and one that was killed does not keep others out.

A driver writes a claim of its own, then lists the folder: of two that begin at once, the later list has the other's claim, and
who finds one withdraws. The holder writes its claim anew every few seconds. One that stays as it is has no holder any more: it
is watched for as long as that takes, by the watcher's own clock, unless its process ran here and is gone. Nothing compares
clocks, of which each machine has another and any may jump.

Who holds the lease and lost it, since it was stopped for longer, finds its claim removed and ends. A renewal that was on its
way for so long may come after that, and the claim be there again: therefore who comes to hold the lease also writes its name
into ``holder``, which has room for one.
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
from dataclasses import dataclass
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
_NAME = "holder"


@dataclass(frozen=True)
class Holder:
    """Who holds a lease. machine: its name, and what its processes' numbers mean. born: when it began, as the kernel counts."""

    run_id: str
    machine: str
    pid: Annotated[int, Field(gt=0, lt=1 << 31)]
    born: float

    @property
    def is_here(self) -> bool:
        """Whether its process is, or was, one of this machine's, since it last started."""
        return self.machine == _machine_id()

    @property
    def is_running(self) -> bool:
        """Whether a process that is_here runs."""
        try:
            return _process_start(self.pid) == self.born
        except psutil.NoSuchProcess:
            return False

    def __str__(self) -> str:
        return f"run {self.run_id}, process {self.pid} on {self.machine.partition(' ')[0]}"


@dataclass(frozen=True)
class _Claim(Holder):
    """What a claim's file holds. renewals: how often it was written anew."""

    renewals: int

    @property
    def holder(self) -> Holder:
        """Whose it is."""
        return Holder(self.run_id, self.machine, self.pid, self.born)


_CLAIM = TypeAdapter(_Claim)


class Lease:
    """Held by this process."""

    def __init__(self, folder: Location, name: str, holder: Holder) -> None:
        self._claim, self._holder = folder.child(name), holder
        self._name, self._own_name = folder.child(_NAME), name.encode()
        self._ended, self._lost = threading.Event(), threading.Event()
        self._renewals = 0
        self._thread = threading.Thread(target=self._renew_until_ended, daemon=True)

    def check(self) -> None:
        """Raises Stopped if it is known that another driver took over."""
        if self._lost.is_set():
            raise Stopped("another driver took this output folder over, since this one did not answer for a while")

    def verify(self) -> None:
        """Raises Stopped if another driver took over, and UserError if the storage does not say for a while."""
        if not STORAGE.run(self._is_held, is_transient=lambda error: isinstance(error, UserError)):
            self._lost.set()
        self.check()

    def _begin(self) -> None:
        self._name.write(self._own_name)
        self._thread.start()

    def _is_held(self) -> bool:
        return self._claim.exists() and self._is_named()

    def _is_named(self) -> bool:
        return self._name.exists() and self._name.read() == self._own_name

    def _write(self) -> None:
        _write_claim(self._claim, self._holder, self._renewals)

    def _renew_until_ended(self) -> None:
        while not self._ended.wait(RENEW_S):
            try:
                if not self._is_held():
                    self._lost.set()
                    return
                self._renewals += 1
                self._write()
            except UserError:  # the storage does not answer: it may do so in time
                continue

    def _end(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        # A storage that fails now takes nothing away from what is done: the claim expires.
        with suppress(UserError):
            if self._is_named():
                self._name.remove()
        with suppress(UserError):
            self._claim.remove()


@contextmanager
def hold(output: Location, run_id: str) -> Iterator[Lease]:
    """Hold the lease on an output folder while the block runs.

    Raises:
        UserError: another driver holds it; says who. Or the folder cannot be written.
    """
    folder = output.child(LEASE)
    holder = Holder(run_id, _machine_id(), os.getpid(), _process_start(os.getpid()))
    own = f"{uuid.uuid4().hex}.json"
    claim = folder.child(own)
    for _ in _CLAIM_CONFLICT:
        _await_expiry(folder)
        _write_claim(claim, holder, 0)
        try:
            others = [name for name in folder.names() if name.endswith(".json") and name != own]
        except BaseException:
            with suppress(UserError):
                claim.remove()
            raise
        if not others:
            break
        claim.remove()
    else:
        raise UserError(f"several drivers want to write {output.uri} at once; begin one of them anew")
    lease = Lease(folder, own, holder)
    try:
        lease._begin()
        yield lease
    finally:
        lease._end()


def current_holder(output: Location) -> Holder | None:
    """Who holds, or held until it was killed, the lease on a folder."""
    folder = output.child(LEASE)
    claims = [claim for name in (folder.names() if folder.exists() else []) if (claim := _read_claim(folder.child(name)))]
    return claims[0].holder if claims else None


def _await_expiry(folder: Location) -> None:
    """Wait until no claim is held. Raises UserError if one is."""
    seen = dict[str, tuple[int, float]]()  # of each claim, its renewals and since when they are so many
    while True:
        hold: list[Holder] = []
        for name in folder.names() if folder.exists() else []:
            if not name.endswith(".json") or (claim := _read_claim(folder.child(name))) is None:
                continue
            if claim.is_here and not claim.is_running:
                _remove(folder, name)
                continue
            before, since = seen.setdefault(name, (claim.renewals, time.monotonic()))
            if claim.is_here or before != claim.renewals:
                raise UserError(
                    f"{claim} is writing {folder.uri.rpartition('/')[0]}; wait until it ends, or set another --output.path"
                )
            if time.monotonic() - since > EXPIRE_S:
                _remove(folder, name)
                continue
            hold.append(claim)
        if not hold:
            return
        time.sleep(RENEW_S / 5)


def _remove(folder: Location, claim: str) -> None:
    """A claim whose holder is gone, and what is left of its renewal if that was being written."""
    for name in folder.names():
        if name.startswith(claim):
            folder.child(name).remove()


def _write_claim(claim: Location, holder: Holder, renewals: int) -> None:
    claim.write(json.dumps({**holder.__dict__, "renewals": renewals}).encode())


def _read_claim(claim: Location) -> _Claim | None:
    """A claim; None if it has been withdrawn, or is none."""
    try:
        return _CLAIM.validate_json(claim.read())
    except (UserError, ValidationError):
        return None


def _machine_id() -> str:
    """This machine since it started, and the space of its processes' numbers: containers have one each."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


def _process_start(pid: int) -> float:
    """Not psutil's time but for want of a better: it moves when the clock is set."""
    try:
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return psutil.Process(pid).create_time()
    if state == "Z":  # killed, and not yet taken note of
        raise psutil.NoSuchProcess(pid)
    return float(numbers[18])
