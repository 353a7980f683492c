"""What is found out about a run that is verified. Pure data."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be. path: of a file or folder; of one of the run's, within the output folder."""

    path: str
    fault: str

    def __str__(self) -> str:
        return f"{self.path}: {self.fault}"


@dataclass
class VerificationReport:
    """Of a run. proved: what of, and how much, in words. notes: what could not be proved, and why."""

    run_id: str
    findings: list[Finding] = field(default_factory=list)
    proved: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def found(self, path: str, fault: str) -> None:
        """Add a finding."""
        self.findings.append(Finding(path, fault))
