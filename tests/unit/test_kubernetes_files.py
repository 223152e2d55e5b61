"""The manifests for KubeRay, against the fields of its API and Ray's own reading of them; offline.

The fields are a part of https://docs.ray.io/en/master/cluster/kubernetes/references/api.html
(KubeRay 1.6.2) and, below `template`, of Kubernetes' core API: what is used here.
"""

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)

ROOT = Path(__file__).parents[2]
FILES = ["raycluster.yaml", "rayjob.yaml", "runs.yaml", "network-policy.yaml"]

# A type, a set of allowed values, a list of one schema, or named fields: those with `*` must be
# there, and "" is every other name.
Schema = type | set[str] | list[Any] | dict[str, Any]
TEXTS: Schema = {"": str}
AMOUNTS: Schema = {"cpu": str, "memory": str, "nvidia.com/gpu": str}
CONTAINER: Schema = {
    "name*": str,
    "image*": str,
    "resources*": {"requests": AMOUNTS, "limits*": AMOUNTS},
    "volumeMounts": [{"name*": str, "mountPath*": str}],
}
POD: Schema = {
    "spec*": {
        "securityContext": {"runAsNonRoot": bool, "runAsUser": int, "fsGroup": int},
        "containers*": [CONTAINER],
        "volumes": [{"name*": str, "persistentVolumeClaim": {"claimName*": str}}],
        "tolerations": [{"key": str, "operator": {"Exists"}, "effect": {"NoSchedule"}}],
    }
}
CLUSTER: Schema = {
    "rayVersion": str,
    "authOptions": {"mode": {"token", "disabled"}},
    "enableInTreeAutoscaling": bool,
    "autoscalerOptions": {"idleTimeoutSeconds": int},
    "headGroupSpec*": {"rayStartParams": TEXTS, "template*": POD},
    "workerGroupSpecs": [
        {
            "groupName*": str,
            "replicas": int,
            "minReplicas*": int,
            "maxReplicas*": int,
            "rayStartParams": TEXTS,
            "template*": POD,
        }
    ],
}
JOB: Schema = {
    "entrypoint": str,
    "shutdownAfterJobFinishes": bool,
    "ttlSecondsAfterFinished": int,
    "rayClusterSpec": CLUSTER,
}
CLAIM: Schema = {
    "accessModes*": [{"ReadWriteOnce"}],
    "resources*": {"requests": {"storage": str}},
}
SELECTOR: Schema = {"matchLabels": TEXTS}
POLICY: Schema = {
    "podSelector*": SELECTOR,
    "policyTypes": [{"Ingress"}],
    "ingress": [
        {"from": [{"podSelector": SELECTOR}], "ports": [{"protocol": {"TCP"}, "port": int}]}
    ],
}
KINDS: dict[tuple[str, str], Schema] = {
    ("ray.io/v1", "RayCluster"): CLUSTER,
    ("ray.io/v1", "RayJob"): JOB,
    ("v1", "PersistentVolumeClaim"): CLAIM,
    ("networking.k8s.io/v1", "NetworkPolicy"): POLICY,
}


def manifest(file: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "kubernetes" / file).read_text())
    return found


def errors(value: Any, schema: Any, path: str) -> list[str]:
    """What is wrong with `value`, with its path."""
    if isinstance(schema, type):
        return [] if type(value) is schema else [f"{path}: {value!r} is no {schema.__name__}"]
    if isinstance(schema, set):
        return [] if value in schema else [f"{path}: {value!r} is none of {schema}"]
    if isinstance(schema, list):
        return sum((errors(item, schema[0], f"{path}[]") for item in value), [])
    fields = {name.rstrip("*"): inner for name, inner in schema.items()}
    found = [
        f"{path}.{name[:-1]} is missing"
        for name in schema
        if name[-1:] == "*" and name[:-1] not in value
    ]
    for name, inner in value.items():
        known = fields.get(name, fields.get(""))
        found += errors(inner, known, f"{path}.{name}") if known else [f"{path}.{name} is no field"]
    return found


@pytest.mark.parametrize("file", FILES)
def test_a_manifest_has_the_fields_of_its_kind_and_no_others(file: str) -> None:
    found = manifest(file)
    assert found.keys() == {"apiVersion", "kind", "metadata", "spec"}
    assert found["metadata"].keys() == {"name"}
    assert errors(found["spec"], KINDS[found["apiVersion"], found["kind"]], "spec") == []


def test_a_wrong_field_a_missing_one_and_a_wrong_value_are_noticed() -> None:
    spec = manifest("raycluster.yaml")["spec"]
    spec["headGroupSpec"]["templates"] = spec["headGroupSpec"].pop("template")
    spec["workerGroupSpecs"][0]["maxReplicas"] = "8"
    spec["authOptions"]["mode"] = "none"
    assert {error.partition(":")[0] for error in errors(spec, CLUSTER, "spec")} == {
        "spec.headGroupSpec.template is missing",
        "spec.headGroupSpec.templates is no field",
        "spec.workerGroupSpecs[].maxReplicas",
        "spec.authOptions.mode",
    }


def test_every_manifest_is_tested() -> None:
    assert {path.name for path in ROOT.glob("kubernetes/*")} == set(FILES)


def test_rays_autoscaler_reads_a_head_without_shards_and_gpu_workers_from_none_up() -> None:
    cluster = manifest("raycluster.yaml")
    cluster["metadata"]["namespace"] = "default"
    config = _derive_autoscaling_config_from_ray_cr(cluster)
    head, worker = (config["available_node_types"][kind] for kind in ("headgroup", "gpu"))
    assert (head["resources"]["CPU"], head["max_workers"]) == (0, 0)
    assert (worker["min_workers"], worker["max_workers"]) == (0, 8)
    assert (worker["resources"]["CPU"], worker["resources"]["GPU"]) == (4, 1)
    assert config["idle_timeout_minutes"] == 10


def test_the_jobs_cluster_is_the_cluster() -> None:
    assert manifest("rayjob.yaml")["spec"]["rayClusterSpec"] == manifest("raycluster.yaml")["spec"]


def test_the_token_and_rays_version_are_those_that_go_together() -> None:
    spec = manifest("raycluster.yaml")["spec"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["rayVersion"] == ray.__version__


def test_only_the_nodes_and_the_dashboards_port_are_let_in() -> None:
    spec = manifest("network-policy.yaml")["spec"]
    nodes, everyone = spec["ingress"]
    assert spec["podSelector"] == nodes["from"][0]["podSelector"]
    assert "ports" not in nodes
    assert everyone == {"ports": [{"protocol": "TCP", "port": 8265}]}


def test_the_image_is_the_manifests_and_of_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    image = f"registry.example.com/maml-dist:{version}"
    assert f"docker build -t {image} " in (ROOT / "Dockerfile").read_text()
    for file in ("raycluster.yaml", "rayjob.yaml"):
        text = (ROOT / "kubernetes" / file).read_text()
        assert re.findall(r"image: (\S+) # PLACEHOLDER", text) == [image, image]


def test_the_image_holds_what_the_manifests_and_kuberay_use() -> None:
    steps = dict[str, list[str]]()
    for line in (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines():
        if match := re.match(r"([A-Z]+) (.*)", line):
            steps.setdefault(match[1], []).append(match[2])
    [user] = steps["USER"]
    head, worker = pods = [
        manifest("raycluster.yaml")["spec"]["headGroupSpec"]["template"]["spec"],
        manifest("raycluster.yaml")["spec"]["workerGroupSpecs"][0]["template"]["spec"],
    ]
    assert [pod["securityContext"]["runAsUser"] for pod in pods] == [int(user)] * 2
    [owned] = re.findall(r"install -d -o ray -g ray (.*)", "\n".join(steps["RUN"]))
    mounted = head["containers"][0]["volumeMounts"][0]["mountPath"]
    assert owned.split() == ["/data", mounted]
    assert any("MAML_DIST_DATA=/data" in line for line in steps["ENV"])
    assert any(re.search(r"install .*\bg\+\+ wget\b", line) for line in steps["RUN"])
    copied = [name for line in steps["COPY"] for name in line.split()[:-1]]
    tracked = subprocess.run(
        ["git", "ls-files", *copied], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert {name.split("/")[0] for name in tracked} == set(copied)
    [python] = re.findall(r"^python:(\S+)-slim$", steps["FROM"][0])
    assert tuple(map(int, python.split("."))) >= (3, 11)


@pytest.mark.parametrize("file", ["raycluster.yaml", "rayjob.yaml"])
def test_what_the_run_writes_lies_on_the_disk_that_stays(file: str) -> None:
    text = (ROOT / "kubernetes" / file).read_text()
    assert manifest("runs.yaml")["metadata"]["name"] == "maml-dist-runs"
    assert "claimName: maml-dist-runs" in text
    assert "python -m maml_dist.train sinusoid --run /runs/sinusoid" in text
