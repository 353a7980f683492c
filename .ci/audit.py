"""Look up the installed packages among known vulnerabilities (pip-audit, with PyPI's service). Exit status 1 if one has any.

pip-audit alone reports "no known vulnerabilities" for packages that its service does not know. Here they are reported as not
audited. If the service cannot be reached, the script says so and succeeds.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

_MAX_NAMES = 5
_COMMAND = "-m pip_audit --format json --progress-spinner off --skip-editable --timeout 10"


def report(dependencies: list[dict[str, Any]]) -> tuple[int, list[str]]:
    """Return the exit status and the lines to print for pip-audit's results."""
    vulnerable = [package for package in dependencies if package.get("vulns")]
    unknown = [package["name"] for package in dependencies if "skip_reason" in package]
    lines = [
        f"{package['name']} {package['version']}: {vulnerability['id']}, "
        f"fixed in {', '.join(vulnerability['fix_versions']) or 'no release yet'}"
        for package in vulnerable
        for vulnerability in package["vulns"]
    ]
    if unknown:
        names = ", ".join(unknown[:_MAX_NAMES]) + (" …" if len(unknown) > _MAX_NAMES else "")
        lines.append(f"NOT AUDITED: {len(unknown)} of {len(dependencies)} packages, which the service does not know: {names}")
    audited = len(dependencies) - len(unknown)
    lines.append(f"{audited} packages audited, {len(vulnerable)} with known vulnerabilities")
    return int(bool(vulnerable)), lines


def main() -> int:
    try:
        result = subprocess.run([sys.executable, *_COMMAND.split()], capture_output=True, text=True, check=False, timeout=300)
        dependencies = json.loads(result.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        print("NOT AUDITED: the service of known vulnerabilities cannot be reached")
        return 0
    status, lines = report(dependencies)
    print("\n".join(lines))
    return status


if __name__ == "__main__":
    sys.exit(main())
