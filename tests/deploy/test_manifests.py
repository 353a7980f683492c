"""The Kubernetes manifests: each overlay is valid and keeps the rules, and a mistake in any of them is found."""

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
from manifests import CRDS, KUBERAY, KUBERNETES, OVERLAYS, ROOT, Object, clusters, faults, pods, render, secrets
from packaging.requirements import Requirement
from packaging.version import Version

needs_schemas = pytest.mark.skipif(not CRDS.is_dir(), reason="../shared/data/kuberay, with KubeRay's schemas, is not there")


@cache
def rendered(overlay: str) -> list[Object]:
    return render(KUBERAY / "overlays" / overlay)


@needs_schemas
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_is_valid_and_keeps_the_rules(overlay: str) -> None:
    assert faults(rendered(overlay)) == []


def test_overlays_hold_what_they_are_for() -> None:
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


def test_the_version_of_ray_is_everywhere_the_newest_that_is_allowed() -> None:
    needs = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (allowed,) = [Requirement(need).specifier for need in needs if Requirement(need).name == "ray"]
    here = Version(ray.__version__)
    assert here in allowed
    assert Version(f"{here.major}.{here.minor + 1}.0") not in allowed
    for lock in (ROOT / "deploy" / "docker").glob("requirements.*.txt"):
        assert f"\nray=={ray.__version__} " in lock.read_text()


def test_the_runbook_makes_every_secret_and_names_every_overlay() -> None:
    runbook = (KUBERAY / "README.md").read_text()
    for overlay in OVERLAYS:
        assert f"overlays/{overlay}" in runbook
        for secret in secrets(rendered(overlay)):
            assert f"create secret generic {secret} " in runbook


def test_pod_security_and_schemas_are_of_one_release() -> None:
    labels = find(rendered("dev"), "Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce-version"] == f"v{KUBERNETES}"


def find(objects: list[Object], kind: str, name: str = "") -> Any:
    return next(part for part in objects if part["kind"] == kind and name in part["metadata"]["name"])


def put(kind: str, path: str, value: Any, name: str = "") -> Callable[[list[Object]], None]:
    """A mistake: a value put where it does not belong; None removes what is there."""

    def mistake(objects: list[Object]) -> None:
        *above, last = [int(step) if step.isdigit() else step for step in path.split("/")]
        place = find(objects, kind, name)
        for step in above:
            place = place[step] if isinstance(step, int) else place.setdefault(step, {})
        if value is None:
            del place[last]
        else:
            place[last] = value

    return mistake


def second_schedule(objects: list[Object]) -> None:
    objects.append(find(rendered("nightly"), "RayCronJob"))


def outside(objects: list[Object]) -> None:
    find(objects, "StatefulSet")["metadata"]["namespace"] = "default"


def with_a_secret(objects: list[Object]) -> None:
    metadata = {"name": "keys", "namespace": "nightshift"}
    objects.append({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": {"key": "abc"}})


HEAD = "spec/headGroupSpec/template/spec"
JOB_HEAD = "spec/rayClusterSpec/headGroupSpec"
SUBMITTER = "spec/submitterPodTemplate/spec/containers/0"
NIGHTLY = "spec/jobTemplate/submitterPodTemplate/spec/containers/0"
REDIS = "spec/template/spec/containers/0"
JOB = "spec/rayClusterSpec/workerGroupSpecs/0/template/spec"
CRON = "spec/jobTemplate/spec/template/spec"

MISTAKES: dict[str, tuple[str, Callable[[list[Object]], None], str]] = {
    # schemas, a kind each
    "misspelt field of a cluster": ("gpu", put("RayCluster", "spec/enableInTreeAutoscalling", True), "was unexpected"),
    "misspelt field of a job": ("gpu", put("RayJob", "spec/ttlSecondAfterFinished", 5), "was unexpected"),
    "misspelt field of a schedule": ("nightly", put("RayCronJob", "spec/concurrencyPolicy", "Forbid"), "was unexpected"),
    "misspelt field of a pod within a job": ("gpu", put("RayJob", f"{JOB}/nodeSelectors", {}), "was unexpected"),
    "number for a text": ("gpu", put("RayCluster", "spec/rayVersion", 2.6), "is not of type 'string'"),
    "text for a number": ("gpu", put("RayJob", "spec/backoffLimit", "1"), "is not of type 'integer'"),
    "value that is none of those": ("gpu", put("RayCluster", "spec/authOptions/mode", "none"), "is not one of"),
    "no schedule": ("nightly", put("RayCronJob", "spec/schedule", None), "'schedule' is a required property"),
    "misspelt field of a cron job": ("nightly-cronjob", put("CronJob", "spec/timezone", "Etc/UTC"), "was unexpected"),
    "misspelt field of a network policy": ("dev", put("NetworkPolicy", "spec/policyType", ["Egress"]), "was unexpected"),
    "share for a count": ("dev", put("PodDisruptionBudget", "spec/minAvailable", [1]), "spec.minAvailable"),
    "account with a text for a truth": ("dev", put("ServiceAccount", "automountServiceAccountToken", "no"), "boolean"),
    "role with a text for a list": ("nightly-cronjob", put("Role", "rules/0/verbs", "get"), "rules.0.verbs"),
    "binding without a role": ("nightly-cronjob", put("RoleBinding", "roleRef", None), "roleRef"),
    "misspelt field of a namespace": ("dev", put("Namespace", "specs", {}), "was unexpected"),
    "misspelt field of a stateful set": ("gpu", put("StatefulSet", "spec/replica", 1), "was unexpected"),
    "port that is a word": ("gpu", put("Service", "spec/ports/0/port", "redis"), "spec.ports.0.port"),
    "options that are half locked": ("dev", put("ConfigMap", "immutable", "no"), "boolean"),
    # rules for pods
    "root": ("gpu", put("RayCluster", f"{HEAD}/securityContext/runAsUser", 0), "a user who is not root"),
    "root in one container": ("dev", put("RayJob", f"{SUBMITTER}/securityContext/runAsUser", 0), "runs as root"),
    "no seccomp": ("gpu", put("RayJob", f"{JOB}/securityContext/seccompProfile", None), "seccompProfile"),
    "the machine's network": ("gpu", put("RayJob", f"{JOB}/hostNetwork", True), "the machine's namespaces"),
    "a folder of the machine": (
        "gpu",
        put("RayJob", f"{JOB}/volumes/0", {"name": "tmp", "hostPath": {"path": "/"}}),
        "neither an emptyDir",
    ),
    "a folder without bounds": ("gpu", put("RayJob", f"{JOB}/volumes/0", {"name": "tmp", "emptyDir": {}}), "no sizeLimit"),
    "folders beyond the disk": (
        "gpu",
        put("RayJob", f"{JOB}/volumes/0/emptyDir/sizeLimit", "90Gi"),
        "beyond its ephemeral-storage",
    ),
    "options that are nowhere": ("gpu", put("RayCluster", f"{HEAD}/volumes/3/configMap/name", "other"), "no ConfigMap other"),
    "an account that is nowhere": ("gpu", put("RayCluster", f"{HEAD}/serviceAccountName", "admin"), "no ServiceAccount admin"),
    "a token for a worker": ("gpu", put("RayJob", f"{JOB}/automountServiceAccountToken", True), "gets no token"),
    "privilege": ("nightly", put("RayCronJob", f"{NIGHTLY}/securityContext/privileged", True), "no privilege"),
    "a way to privilege": (
        "nightly-cronjob",
        put("CronJob", f"{CRON}/containers/0/securityContext/allowPrivilegeEscalation", None),
        "no privilege",
    ),
    "a capability": ("gpu", put("StatefulSet", f"{REDIS}/securityContext/capabilities/add", ["NET_RAW"]), "drops all"),
    "a root that is written to": (
        "gpu",
        put("RayCluster", f"{HEAD}/containers/0/securityContext/readOnlyRootFilesystem", False),
        "readOnlyRoot",
    ),
    "the autoscaler's root": (
        "gpu",
        put("RayCluster", "spec/autoscalerOptions/securityContext/readOnlyRootFilesystem", None),
        "autoscaler: readOnly",
    ),
    "nowhere for Ray to write": (
        "dev",
        put("RayJob", f"{JOB_HEAD}/template/spec/containers/0/volumeMounts/1", {"name": "tmp", "mountPath": "/x"}),
        "Ray writes to",
    ),
    "no requests": (
        "gpu",
        put("RayJob", f"{JOB}/containers/0/resources/requests", None),
        "requests of cpu, ephemeral-storage, memory",
    ),
    "no limit of memory": (
        "nightly-cronjob",
        put("CronJob", f"{CRON}/containers/0/resources/limits/memory", None),
        "limits of memory",
    ),
    "latest": ("gpu", put("RayCluster", f"{HEAD}/containers/0/image", "nightshift:latest"), "no tag that stays"),
    "no tag": ("gpu", put("StatefulSet", f"{REDIS}/image", "registry:5000/redis"), "no tag that stays"),
    "a token in the open": (
        "dev",
        put("RayJob", f"{SUBMITTER}/env/2", {"name": "RAY_AUTH_TOKEN", "value": "abc"}),
        "belongs in a Secret",
    ),
    "a secret in the open": ("dev", with_a_secret, "a Secret has no place here"),
    "a password in the open": (
        "gpu",
        put("RayCluster", "spec/gcsFaultToleranceOptions/redisPassword/value", "abc"),
        "redisPassword belongs",
    ),
    # rules for clusters and jobs
    "another Ray": ("gpu", put("RayCluster", "spec/rayVersion", "2.55.0"), "and the image has"),
    "no authentication": ("gpu", put("RayCluster", "spec/authOptions/mode", "disabled"), "authOptions"),
    "a dashboard for all": (
        "gpu",
        put("RayCluster", "spec/headGroupSpec/serviceType", "LoadBalancer"),
        "must not be reached from outside",
    ),
    "a dashboard on every node": (
        "dev",
        put("RayJob", f"{JOB_HEAD}/headService/spec/type", "NodePort"),
        "must not be reached from outside",
    ),
    "a dashboard on the web": (
        "gpu",
        put("RayCluster", "spec/headGroupSpec/enableIngress", True),
        "must not be reached from outside",
    ),
    "a service for all": ("gpu", put("Service", "spec/type", "NodePort"), "only ClusterIP"),
    "no autoscaler": ("gpu", put("RayCluster", "spec/enableInTreeAutoscaling", False), "workers come and go"),
    "fewer at most than at least": ("gpu", put("RayCluster", "spec/workerGroupSpecs/0/maxReplicas", 1), "out of order"),
    "a job that starts by itself": ("gpu", put("RayJob", "spec/suspend", False), "must wait"),
    "a job that never ends": ("gpu", put("RayJob", "spec/activeDeadlineSeconds", None), "must end with it"),
    "a cluster that stays": ("dev", put("RayJob", "spec/shutdownAfterJobFinishes", False), "must end with it"),
    "a misspelt option": (
        "dev",
        put("RayJob", "spec/entrypoint", "python -m jobs.summarize --input.pth s3://b/d"),
        "no option --input.pth",
    ),
    "an option's bad value": (
        "gpu",
        put("RayJob", "spec/entrypoint", "python -m jobs.train --scaling.num_workers none", "train"),
        "num_workers",
    ),
    "a misspelt key of the options": (
        "nightly",
        put("ConfigMap", "data/summarize.yaml", "input: {paths: s3://b/d}"),
        "no option --input.paths",
    ),
    "another command": ("dev", put("RayJob", "spec/entrypoint", "python jobs/summarize.py"), "is none of"),
    # rules for schedules, rights and networks
    "runs side by side": ("nightly-cronjob", put("CronJob", "spec/concurrencyPolicy", "Allow"), "must be Forbid"),
    "a night longer than a day": ("nightly", put("RayCronJob", "spec/jobTemplate/backoffLimit", 2), "two nights run at once"),
    "nights that wait for ever": ("nightly", put("RayCronJob", "spec/jobTemplate/suspend", True), "wait for ever"),
    "two schedules": ("nightly-cronjob", second_schedule, "two schedules"),
    "open pod security": ("dev", put("Namespace", "metadata/labels", {}), "must be restricted"),
    "an account that hands out tokens": ("dev", put("ServiceAccount", "automountServiceAccountToken", None), "not the account"),
    "all rights": ("nightly-cronjob", put("Role", "rules/0/verbs", ["*"]), "a role names what it allows"),
    "ingress from anywhere": ("dev", put("NetworkPolicy", "spec/ingress/0/from", None, "ray-nodes"), "ingress from anywhere"),
    "egress to anywhere": ("dev", put("NetworkPolicy", "spec/egress/0/ports", None, "head"), "egress to anywhere"),
    "the machine's own rights": (
        "dev",
        put("NetworkPolicy", "spec/egress/0/to/0/ipBlock/except", [], "object-store"),
        "metadata service",
    ),
    "nothing denied": ("dev", put("NetworkPolicy", "spec/policyTypes", ["Ingress"], "default-deny"), "must deny all"),
    "a dashboard for all namespaces": (
        "dev",
        put("NetworkPolicy", "spec/ingress/0/from/0/namespaceSelector", {}, "head"),
        "beyond its neighbours",
    ),
    "no budget": ("dev", lambda objects: objects.remove(find(objects, "PodDisruptionBudget")), "no PodDisruptionBudget"),
    "another namespace": ("gpu", outside, "outside the namespace"),
}


@needs_schemas
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found(mistake: str) -> None:
    overlay, make, told = MISTAKES[mistake]
    objects = copy.deepcopy(rendered(overlay))
    make(objects)
    found = faults(objects)
    assert any(told in fault for fault in found), found


def test_a_patch_that_finds_nothing_is_refused(tmp_path: Path) -> None:
    """A group that was renamed, say, which a component changes by its place."""
    shutil.copytree(KUBERAY, tmp_path / "kuberay")
    file = tmp_path / "kuberay" / "base" / "raycluster.yaml"
    file.write_text(re.sub("groupName: gpu", "groupName: cuda", file.read_text()))
    with pytest.raises(AssertionError, match="test"):
        render(tmp_path / "kuberay" / "overlays" / "gpu")
