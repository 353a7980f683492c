"""The Kubernetes manifests: each overlay is valid and follows the rules, and the checks find mistakes."""

from __future__ import annotations

import copy
import re
import shutil
import tomllib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import ray
from manifests import CRDS, KUBERAY, KUBERNETES, OVERLAYS, ROOT, Object, clusters, find_errors, pods, render, secrets
from packaging.requirements import Requirement
from packaging.version import Version

needs_schemas = pytest.mark.skipif(not CRDS.is_dir(), reason="KubeRay's schemas are missing at ../shared/data/kuberay")


@cache
def rendered(overlay: str) -> list[Object]:
    return render(KUBERAY / "overlays" / overlay)


@needs_schemas
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_is_valid_and_follows_the_rules(overlay: str) -> None:
    assert find_errors(rendered(overlay)) == []


def test_overlays_serve_their_purpose() -> None:
    kinds = {overlay: [part["kind"] for part in rendered(overlay)] for overlay in OVERLAYS}
    assert kinds.keys() == {"dev", "gpu", "nightly", "nightly-cronjob"}
    assert "RayCronJob" in kinds["nightly"]
    assert {"CronJob", "RayJob"} <= set(kinds["nightly-cronjob"])
    assert not {"RayCluster", "CronJob"} & set(kinds["nightly"])
    assert kinds["gpu"].count("RayJob") == 2
    (cluster,) = clusters(find(rendered("gpu"), "RayCluster"))
    cpu, gpu = cluster["workerGroupSpecs"]
    assert gpu["minReplicas"] == 1 < gpu["maxReplicas"]
    (pod,) = pods(gpu)
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert any(toleration["key"] == "nightshift/spot" for toleration in pod["tolerations"])
    assert cluster["gcsFaultToleranceOptions"]["redisAddress"] == "redis://nightshift-redis:6379"
    assert "gcsFaultToleranceOptions" not in find(rendered("gpu"), "RayJob")["spec"]["rayClusterSpec"]
    assert cpu["maxReplicas"] > cpu["minReplicas"]


def test_the_newest_allowed_ray_is_used_everywhere() -> None:
    requirements = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (allowed,) = [requirement.specifier for requirement in map(Requirement, requirements) if requirement.name == "ray"]
    installed = Version(ray.__version__)
    assert installed in allowed
    assert Version(f"{installed.major}.{installed.minor + 1}.0") not in allowed
    for lock in (ROOT / "deploy" / "docker").glob("requirements.*.txt"):
        assert f"\nray=={ray.__version__} " in lock.read_text()


def test_the_readme_creates_every_secret_and_names_every_overlay() -> None:
    readme = (KUBERAY / "README.md").read_text()
    for overlay in OVERLAYS:
        assert f"overlays/{overlay}" in readme
        for secret in secrets(rendered(overlay)):
            assert f"create secret generic {secret} " in readme


def test_pod_security_and_schemas_have_the_same_release() -> None:
    labels = find(rendered("dev"), "Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce-version"] == f"v{KUBERNETES}"


def find(objects: list[Object], kind: str, name: str = "") -> Any:
    return next(part for part in objects if part["kind"] == kind and name in part["metadata"]["name"])


def put(kind: str, path: str, value: Any, name: str = "") -> Callable[[list[Object]], None]:
    """Return a function that makes a mistake: it sets a value at a path, or removes it if the value is None."""

    def mistake(objects: list[Object]) -> None:
        *parents, last = [int(step) if step.isdigit() else step for step in path.split("/")]
        node = find(objects, kind, name)
        for step in parents:
            node = node[step] if isinstance(step, int) else node.setdefault(step, {})
        if value is None:
            del node[last]
        else:
            node[last] = value

    return mistake


def add_schedule(objects: list[Object]) -> None:
    objects.append(find(rendered("nightly"), "RayCronJob"))


def move_to_another_namespace(objects: list[Object]) -> None:
    find(objects, "StatefulSet")["metadata"]["namespace"] = "default"


def add_secret(objects: list[Object]) -> None:
    metadata = {"name": "keys", "namespace": "nightshift"}
    objects.append({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": {"key": "abc"}})


HEAD = "spec/headGroupSpec/template/spec"
JOB_HEAD = "spec/rayClusterSpec/headGroupSpec"
SUBMITTER = "spec/submitterPodTemplate/spec/containers/0"
NIGHTLY = "spec/jobTemplate/submitterPodTemplate/spec/containers/0"
REDIS = "spec/template/spec/containers/0"
JOB = "spec/rayClusterSpec/workerGroupSpecs/0/template/spec"
CRON = "spec/jobTemplate/spec/template/spec"

# Name: overlay, mistake, part of the expected error.
MISTAKES: dict[str, tuple[str, Callable[[list[Object]], None], str]] = {
    # schemas, one mistake for each kind
    "misspelt field of a cluster": ("gpu", put("RayCluster", "spec/enableInTreeAutoscalling", True), "was unexpected"),
    "misspelt field of a job": ("gpu", put("RayJob", "spec/ttlSecondAfterFinished", 5), "was unexpected"),
    "misspelt field of a schedule": ("nightly", put("RayCronJob", "spec/concurrencyPolicy", "Forbid"), "was unexpected"),
    "misspelt field of a pod within a job": ("gpu", put("RayJob", f"{JOB}/nodeSelectors", {}), "was unexpected"),
    "number instead of string": ("gpu", put("RayCluster", "spec/rayVersion", 2.6), "is not of type 'string'"),
    "string instead of number": ("gpu", put("RayJob", "spec/backoffLimit", "1"), "is not of type 'integer'"),
    "value outside an enumeration": ("gpu", put("RayCluster", "spec/authOptions/mode", "none"), "is not one of"),
    "missing schedule": ("nightly", put("RayCronJob", "spec/schedule", None), "'schedule' is a required property"),
    "misspelt field of a cron job": ("nightly-cronjob", put("CronJob", "spec/timezone", "Etc/UTC"), "was unexpected"),
    "misspelt field of a network policy": ("dev", put("NetworkPolicy", "spec/policyType", ["Egress"]), "was unexpected"),
    "list instead of count": ("dev", put("PodDisruptionBudget", "spec/minAvailable", [1]), "spec.minAvailable"),
    "string instead of boolean in an account": ("dev", put("ServiceAccount", "automountServiceAccountToken", "no"), "boolean"),
    "string instead of list in a role": ("nightly-cronjob", put("Role", "rules/0/verbs", "get"), "rules.0.verbs"),
    "missing role in a binding": ("nightly-cronjob", put("RoleBinding", "roleRef", None), "roleRef"),
    "misspelt field of a namespace": ("dev", put("Namespace", "specs", {}), "was unexpected"),
    "misspelt field of a stateful set": ("gpu", put("StatefulSet", "spec/replica", 1), "was unexpected"),
    "string instead of port": ("gpu", put("Service", "spec/ports/0/port", "redis"), "spec.ports.0.port"),
    "string instead of boolean in a config map": ("dev", put("ConfigMap", "immutable", "no"), "boolean"),
    # rules for pods
    "root user": ("gpu", put("RayCluster", f"{HEAD}/securityContext/runAsUser", 0), "runAsUser"),
    "root user in one container": ("dev", put("RayJob", f"{SUBMITTER}/securityContext/runAsUser", 0), "must not run as root"),
    "no seccomp profile": ("gpu", put("RayJob", f"{JOB}/securityContext/seccompProfile", None), "seccompProfile"),
    "host network": ("gpu", put("RayJob", f"{JOB}/hostNetwork", True), "hostNetwork"),
    "host folder": (
        "gpu",
        put("RayJob", f"{JOB}/volumes/0", {"name": "tmp", "hostPath": {"path": "/"}}),
        "neither an emptyDir",
    ),
    "folder without size limit": ("gpu", put("RayJob", f"{JOB}/volumes/0", {"name": "tmp", "emptyDir": {}}), "no sizeLimit"),
    "folders larger than the disk": (
        "gpu",
        put("RayJob", f"{JOB}/volumes/0/emptyDir/sizeLimit", "90Gi"),
        "exceed its ephemeral-storage",
    ),
    "missing config map": ("gpu", put("RayCluster", f"{HEAD}/volumes/3/configMap/name", "other"), "no ConfigMap other"),
    "missing account": ("gpu", put("RayCluster", f"{HEAD}/serviceAccountName", "admin"), "no ServiceAccount admin"),
    "API token for a worker": (
        "gpu",
        put("RayJob", f"{JOB}/automountServiceAccountToken", True),
        "automountServiceAccountToken must be false",
    ),
    "privileged container": ("nightly", put("RayCronJob", f"{NIGHTLY}/securityContext/privileged", True), "privileged"),
    "privilege escalation": (
        "nightly-cronjob",
        put("CronJob", f"{CRON}/containers/0/securityContext/allowPrivilegeEscalation", None),
        "privileged",
    ),
    "added capability": ("gpu", put("StatefulSet", f"{REDIS}/securityContext/capabilities/add", ["NET_RAW"]), "drop all"),
    "writable root file system": (
        "gpu",
        put("RayCluster", f"{HEAD}/containers/0/securityContext/readOnlyRootFilesystem", False),
        "readOnlyRoot",
    ),
    "writable root file system of the autoscaler": (
        "gpu",
        put("RayCluster", "spec/autoscalerOptions/securityContext/readOnlyRootFilesystem", None),
        "autoscaler: readOnly",
    ),
    "no writable /tmp": (
        "dev",
        put("RayJob", f"{JOB_HEAD}/template/spec/containers/0/volumeMounts/1", {"name": "tmp", "mountPath": "/x"}),
        "writable for Ray",
    ),
    "no requests": (
        "gpu",
        put("RayJob", f"{JOB}/containers/0/resources/requests", None),
        "requests of cpu, ephemeral-storage, memory",
    ),
    "no memory limit": (
        "nightly-cronjob",
        put("CronJob", f"{CRON}/containers/0/resources/limits/memory", None),
        "limits of memory",
    ),
    "tag latest": ("gpu", put("RayCluster", f"{HEAD}/containers/0/image", "nightshift:latest"), "no fixed tag"),
    "no tag": ("gpu", put("StatefulSet", f"{REDIS}/image", "registry:5000/redis"), "no fixed tag"),
    "token in plain text": (
        "dev",
        put("RayJob", f"{SUBMITTER}/env/2", {"name": "RAY_AUTH_TOKEN", "value": "abc"}),
        "must come from a Secret",
    ),
    "committed secret": ("dev", add_secret, "must not be committed"),
    "password in plain text": (
        "gpu",
        put("RayCluster", "spec/gcsFaultToleranceOptions/redisPassword/value", "abc"),
        "redisPassword must",
    ),
    # rules for clusters and jobs
    "other version of Ray": ("gpu", put("RayCluster", "spec/rayVersion", "2.55.0"), "but the image has"),
    "no authentication": ("gpu", put("RayCluster", "spec/authOptions/mode", "disabled"), "authOptions"),
    "public dashboard": (
        "gpu",
        put("RayCluster", "spec/headGroupSpec/serviceType", "LoadBalancer"),
        "must not be reachable from outside",
    ),
    "dashboard on a node port": (
        "dev",
        put("RayJob", f"{JOB_HEAD}/headService/spec/type", "NodePort"),
        "must not be reachable from outside",
    ),
    "dashboard behind an ingress": (
        "gpu",
        put("RayCluster", "spec/headGroupSpec/enableIngress", True),
        "must not be reachable from outside",
    ),
    "public service": ("gpu", put("Service", "spec/type", "NodePort"), "type must be ClusterIP"),
    "no autoscaler": ("gpu", put("RayCluster", "spec/enableInTreeAutoscaling", False), "enableInTreeAutoscaling"),
    "maximum below minimum": ("gpu", put("RayCluster", "spec/workerGroupSpecs/0/maxReplicas", 1), "maxReplicas"),
    "job that starts when applied": ("gpu", put("RayJob", "spec/suspend", False), "suspend must be true"),
    "job without deadline": ("gpu", put("RayJob", "spec/activeDeadlineSeconds", None), "activeDeadlineSeconds"),
    "cluster that outlives its job": ("dev", put("RayJob", "spec/shutdownAfterJobFinishes", False), "activeDeadlineSeconds"),
    "misspelt option": (
        "dev",
        put("RayJob", "spec/entrypoint", "python -m jobs.summarize --input.pth s3://b/d"),
        "no option --input.pth",
    ),
    "invalid value of an option": (
        "gpu",
        put("RayJob", "spec/entrypoint", "python -m jobs.train --scaling.num_workers none", "train"),
        "num_workers",
    ),
    "misspelt key in the options": (
        "nightly",
        put("ConfigMap", "data/summarize.yaml", "input: {paths: s3://b/d}"),
        "no option --input.paths",
    ),
    "other command": ("dev", put("RayJob", "spec/entrypoint", "python jobs/summarize.py"), "does not run"),
    # rules for schedules, permissions and networks
    "overlapping runs": ("nightly-cronjob", put("CronJob", "spec/concurrencyPolicy", "Allow"), "must be Forbid"),
    "retries beyond a day": ("nightly", put("RayCronJob", "spec/jobTemplate/backoffLimit", 2), "two runs overlap"),
    "suspended nightly job": ("nightly", put("RayCronJob", "spec/jobTemplate/suspend", True), "suspend must be false"),
    "two schedules": ("nightly-cronjob", add_schedule, "several schedules"),
    "no pod security": ("dev", put("Namespace", "metadata/labels", {}), "must be restricted"),
    "token for all pods of an account": (
        "dev",
        put("ServiceAccount", "automountServiceAccountToken", None),
        "automountServiceAccountToken must be false",
    ),
    "wildcard in a role": ("nightly-cronjob", put("Role", "rules/0/verbs", ["*"]), "wildcards"),
    "ingress from anywhere": ("dev", put("NetworkPolicy", "spec/ingress/0/from", None, "ray-nodes"), "ingress from anywhere"),
    "egress to anywhere": ("dev", put("NetworkPolicy", "spec/egress/0/ports", None, "head"), "egress to anywhere"),
    "access to the metadata service": (
        "dev",
        put("NetworkPolicy", "spec/egress/0/to/0/ipBlock/except", [], "object-store"),
        "metadata service",
    ),
    "no default deny": ("dev", put("NetworkPolicy", "spec/policyTypes", ["Ingress"], "default-deny"), "must deny all"),
    "dashboard open to all namespaces": (
        "dev",
        put("NetworkPolicy", "spec/ingress/0/from/0/namespaceSelector", {}, "head"),
        "opens the dashboard",
    ),
    "no disruption budget": (
        "dev",
        lambda objects: objects.remove(find(objects, "PodDisruptionBudget")),
        "no PodDisruptionBudget",
    ),
    "object in another namespace": ("gpu", move_to_another_namespace, "outside the namespace"),
}


@needs_schemas
@pytest.mark.parametrize("mistake", MISTAKES)
def test_checks_find_a_mistake(mistake: str) -> None:
    overlay, make_mistake, message = MISTAKES[mistake]
    objects = copy.deepcopy(rendered(overlay))
    make_mistake(objects)
    errors = find_errors(objects)
    assert any(message in error for error in errors), errors


def test_a_patch_whose_target_changed_fails(tmp_path: Path) -> None:
    """A component patches a worker group by its position, and checks that it is the right one."""
    shutil.copytree(KUBERAY, tmp_path / "kuberay")
    file = tmp_path / "kuberay" / "base" / "raycluster.yaml"
    file.write_text(re.sub("groupName: gpu", "groupName: cuda", file.read_text()))
    with pytest.raises(AssertionError, match="test"):
        render(tmp_path / "kuberay" / "overlays" / "gpu")
