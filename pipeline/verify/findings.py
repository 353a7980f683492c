"""The result of verifying a run. Plain data."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Finding:
    """A defect of an output, in words. The path is relative to the output folder."""

    path: str
    problem: str

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


@dataclass
class VerificationReport:
    """Result of verifying a run.

    Attributes:
        run_id: The run; empty if there is none.
        findings: Defects. A run without any is what its manifest says.
        verified: Number of checked "files", "bytes", "rows" and "ids", as text.
        notes: Checks that were not possible, each with the reason.
    """

    run_id: str
    findings: list[Finding] = field(default_factory=list)
    verified: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, path: str, problem: str) -> None:
        self.findings.append(Finding(path, problem))
