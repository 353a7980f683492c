"""Look the installed packages up among known vulnerabilities (pip-audit, PyPI's service); status 1 if one has any.

pip-audit alone says "no known vulnerabilities" of packages that its service does not answer for. Here they are counted,
and said not to be audited: where no service is reached, nothing is claimed, and nothing fails.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


def verdict(dependencies: list[dict[str, Any]]) -> tuple[int, list[str]]:
    """The exit status, and what is to be said, of what pip-audit found."""
    bad = [each for each in dependencies if each.get("vulns")]
    unknown = [each["name"] for each in dependencies if "skip_reason" in each]
    lines = [
        f"{each['name']} {each['version']}: {found['id']}, fixed in {', '.join(found['fix_versions']) or 'no release yet'}"
        for each in bad
        for found in each["vulns"]
    ]
    if unknown:
        some = ", ".join(unknown[:5]) + (" …" if len(unknown) > 5 else "")
        lines.append(f"NOT AUDITED: {len(unknown)} of {len(dependencies)} packages, of which the service says nothing: {some}")
    audited = len(dependencies) - len(unknown)
    lines.append(f"{audited} packages audited, {len(bad)} with known vulnerabilities")
    return int(bool(bad)), lines


def main() -> int:
    command = [
        sys.executable,
        "-m",
        "pip_audit",
        "--format",
        "json",
        "--progress-spinner",
        "off",
        "--skip-editable",
        "--timeout",
        "10",
    ]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        dependencies = json.loads(ran.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        print("NOT AUDITED: the service of known vulnerabilities cannot be reached from here")
        return 0
    status, lines = verdict(dependencies)
    print("\n".join(lines))
    return status


if __name__ == "__main__":
    sys.exit(main())
