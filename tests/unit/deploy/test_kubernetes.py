"""The Kubernetes manifests are valid against Kubernetes' own schemas and agree with this code."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from gliaflow_proto.routing import STAGE_QUEUES
from gliaflow_runtime.settings import Settings
from requirements import skip_or_fail

MANIFESTS = Path(__file__).parents[3] / "deploy" / "kubernetes"
RABBITMQ = Path(__file__).parents[3] / "deploy" / "rabbitmq"
VERSION = "1.32"  # of the schemas: the oldest supported one
STAGES = {"preprocessor", "extractor", "classifier", "generator"}
CLIENTS = {"dicom": 11112, "console": 8765}  # their ports


def fields(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    return {"required": [*required], "properties": required | optional, "additionalProperties": False}


TEXT, COUNT, ANY = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "object"}
NAMED = fields({"name": TEXT})
TRIGGER = fields(
    {
        "type": {"const": "rabbitmq"},
        "metadata": fields({"mode": {"const": "QueueLength"}, "queueName": TEXT, "value": {"pattern": "^[0-9]+$"}}),
        "authenticationRef": NAMED,
    }
)
SECRET_REF = fields({"parameter": {"const": "host"}, "name": TEXT, "key": TEXT})
# The fields that we use of KEDA's and the RabbitMQ operator's kinds, which Kubernetes' schemas lack.
CUSTOM = {
    ("keda.sh/v1alpha1", "ScaledObject"): fields(
        {
            "scaleTargetRef": NAMED,
            "triggers": {"type": "array", "items": TRIGGER},
            "minReplicaCount": COUNT,
            "maxReplicaCount": COUNT,
        },
        pollingInterval=COUNT,
        cooldownPeriod=COUNT,
        advanced=fields({"horizontalPodAutoscalerConfig": fields({"behavior": ANY})}),
    ),
    ("keda.sh/v1alpha1", "TriggerAuthentication"): fields({"secretTargetRef": {"type": "array", "items": SECRET_REF}}),
    ("rabbitmq.com/v1beta1", "RabbitmqCluster"): fields(
        {
            "replicas": {"const": 3},
            "image": TEXT,
            "persistence": fields({"storage": TEXT}),
            "resources": fields({"requests": ANY, "limits": ANY}),
            "affinity": ANY,
            "rabbitmq": fields({"additionalConfig": TEXT}),
        }
    ),
}


def rendered(folder: str) -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml")
    if shutil.which("kubectl") is None:
        skip_or_fail("no kubectl, which renders a kustomization")
    done = subprocess.run(["kubectl", "kustomize", MANIFESTS / folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(scope="module", params=["base", "example"])
def manifests(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """The objects that `kubectl apply -k` would send: of the base alone, and of the example with every component."""
    return rendered(request.param)


def of_kind(manifests: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {one["metadata"]["name"]: one for one in manifests if one["kind"] == kind}


def test_each_manifest_is_valid_and_has_no_unknown_field(manifests):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    jsonschema = pytest.importorskip("jsonschema")
    for one in manifests:
        custom = CUSTOM.get((one["apiVersion"], one["kind"]))
        if custom is None:
            kubernetes_validate.validate(one, VERSION, strict=True)
        else:
            jsonschema.validate(one["spec"], custom)
        assert one["kind"] == "Namespace" or one["metadata"]["namespace"] == "gliaflow"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(
            of_kind(manifests, "Deployment")["extractor"] | {"unknown": 1}, VERSION, strict=True
        )


def test_each_container_is_locked_down_has_limits_and_probes(manifests):
    deployments = of_kind(manifests, "Deployment")
    assert set(deployments) >= STAGES
    for name, one in (deployments | of_kind(manifests, "Job")).items():
        pod = one["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"], name
        assert pod["securityContext"]["runAsUser"] == 10001
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
    for name, one in deployments.items():
        (container,) = one["spec"]["template"]["spec"]["containers"]
        paths = {probe: container[probe]["httpGet"]["path"] for probe in container if probe.endswith("Probe")}
        ready = "/livez" if name in CLIENTS else "/readyz"  # these are of use also while the broker is away
        assert paths == {"startupProbe": ready, "readinessProbe": ready, "livenessProbe": "/livez"}, name
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports == {"health": 8080} | ({name: CLIENTS[name]} if name in CLIENTS else {})


def test_stage_has_time_to_finish_its_message(manifests):
    for one in of_kind(manifests, "Deployment").values():
        grace = one["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        assert grace > Settings.model_fields["deadline_s"].default
    budgets = of_kind(manifests, "PodDisruptionBudget")
    assert set(budgets) == STAGES
    assert all(one["spec"]["maxUnavailable"] == 1 for one in budgets.values())


def test_every_setting_exists(manifests):
    known = {f"GLIAFLOW_{name.upper()}" for name in Settings.model_fields}
    for name, one in of_kind(manifests, "Deployment").items():
        (container,) = one["spec"]["template"]["spec"]["containers"]
        environment = {variable["name"] for variable in container["env"]}
        assert {variable for variable in environment if not variable.startswith("AWS_")} <= known
        assert container["args"] == ([name] if name in CLIENTS else ["serve", name])
    settings = {}
    for name, one in of_kind(manifests, "ConfigMap").items():
        settings |= one["data"] if name.startswith("settings") else {}
    assert set(settings) <= known
    values = {name.removeprefix("GLIAFLOW_").lower(): value for name, value in settings.items()}
    if "roots" in values:
        values["roots"] = json.loads(values["roots"])
    Settings(**values)


def test_each_stage_connects_as_the_broker_user_of_its_name(manifests):
    users = {user["name"] for user in json.loads((RABBITMQ / "users.json").read_text())["users"]}
    for name, one in of_kind(manifests, "Deployment").items():
        pod = one["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        environment = {variable["name"]: variable.get("value") for variable in container["env"]}
        assert environment["GLIAFLOW_BROKER"] == f"amqp://{name}@rabbitmq:5672/"
        assert name in users
        (folder,) = (mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "broker")
        assert environment["GLIAFLOW_BROKER_PASSWORD_FILE"] == f"{folder}/password"
        (volume,) = (volume for volume in pod["volumes"] if volume["name"] == "broker")
        assert volume["secret"] == {"secretName": f"broker-{name}"}


def test_scaled_queues_exist_and_their_limits_suit_the_replicas(manifests):
    queues = {queue.name for queue in STAGE_QUEUES}
    definitions = json.loads((RABBITMQ / "definitions.json").read_text())
    longest = {policy["name"]: policy["definition"].get("max-length") for policy in definitions["policies"]}
    scaled = of_kind(manifests, "ScaledObject")
    assert set(scaled) == STAGES
    for name, one in scaled.items():
        assert one["spec"]["scaleTargetRef"]["name"] == name
        (trigger,) = one["spec"]["triggers"]
        queue = trigger["metadata"]["queueName"]
        assert queue in queues
        assert int(trigger["metadata"]["value"]) * one["spec"]["maxReplicaCount"] <= longest[queue]
        assert trigger["authenticationRef"]["name"] in of_kind(manifests, "TriggerAuthentication")
        assert "replicas" not in of_kind(manifests, "Deployment")[name]["spec"], "a fixed count would undo KEDA's"


def pods(manifests: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The template of each pod that these manifests start, by the name of its Deployment or Job."""
    return {
        name: one["spec"]["template"]
        for name, one in (of_kind(manifests, "Deployment") | of_kind(manifests, "Job")).items()
    }


def named_secrets(value: Any) -> set[str]:
    """The names of all Secrets in a part of a manifest: volumes, envFrom, and single variables."""
    if isinstance(value, list):
        return set().union(*map(named_secrets, value))
    if not isinstance(value, dict):
        return set()
    inside = set().union(*map(named_secrets, value.values()))
    own = [value.get("secret"), value.get("secretRef"), value.get("secretKeyRef")]
    return inside | {one.get("secretName") or one["name"] for one in own if one}


def test_each_pod_has_only_the_secrets_that_it_needs(manifests):
    expected = {name: {f"broker-{name}"} for name in [*STAGES, *CLIENTS, "trainer"]}
    expected["policies"] = {"broker-rabbitmq", "rabbitmq-default-user"}
    if "fetch-bundle" in pods(manifests):  # the example: bundle and scans are on S3
        expected["fetch-bundle"] = {"s3-bundle"}
        expected["preprocessor"] |= {"s3-scans"}
    for name, pod in pods(manifests).items():
        assert named_secrets(pod) == expected[name], name
        assert pod["spec"]["automountServiceAccountToken"] is False


def egress(manifests: list[dict[str, Any]], labels: dict[str, str]) -> list[str]:
    """The policies that let a pod with these labels connect to others. No policy: it may connect to everything."""
    policies = of_kind(manifests, "NetworkPolicy")
    applied = {
        name: one["spec"].get("egress", [])
        for name, one in policies.items()
        if "Egress" in one["spec"]["policyTypes"]
        and one["spec"]["podSelector"].get("matchLabels", {}).items() <= labels.items()
    }
    assert "nothing" in applied
    return sorted(name for name, rules in applied.items() if rules)


def test_only_the_pods_that_read_from_the_store_or_serve_a_pacs_may_leave_the_cluster(manifests):
    expected = {name: ["names", "stages"] for name in [*STAGES, "trainer"]}
    expected |= {"policies": ["names", "policies"], "dicom": ["dicom", "names", "stages"]}
    expected["console"] = ["console", "names", "stages"]  # RabbitMQ's management API
    if "fetch-bundle" in pods(manifests):
        expected["fetch-bundle"] = ["names", "s3-bundle"]
        expected["preprocessor"] = ["names", "s3-scans", "stages"]
    for name, pod in pods(manifests).items():
        assert egress(manifests, pod["metadata"]["labels"]) == expected[name], name


def test_no_pod_may_connect_to_every_address(manifests):
    policies = of_kind(manifests, "NetworkPolicy")
    assert policies["nothing"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for name, one in policies.items():
        for rule in one["spec"].get("egress", []):
            assert rule["ports"], name
            assert rule["to"], f"{name}: a rule without `to` allows every address"
            for peer in rule["to"]:
                if "ipBlock" in peer:
                    assert peer == {"ipBlock": {"cidr": "192.0.2.0/24"}}, (
                        "nobody's: the operator sets the addresses of the store and the PACS"
                    )
                else:
                    assert peer["podSelector"]["matchLabels"], name


def test_network_policies_allow_only_the_required_connections(manifests):
    policies = of_kind(manifests, "NetworkPolicy")
    (to_names,) = policies["names"]["spec"]["egress"]
    (dns,) = to_names["to"]
    assert dns["podSelector"] == {"matchLabels": {"k8s-app": "kube-dns"}}
    assert {one["port"] for one in to_names["ports"]} == {53}
    (to_broker,) = policies["stages"]["spec"]["egress"]
    assert to_broker["to"] == [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": "rabbitmq"}}}]
    assert to_broker["ports"] == [{"protocol": "TCP", "port": 5672}]
    (from_prometheus,) = policies["stages"]["spec"]["ingress"]
    assert from_prometheus["ports"] == [{"protocol": "TCP", "port": 8080}]
    for one in of_kind(manifests, "Deployment").values():
        assert one["spec"]["template"]["metadata"]["labels"]["gliaflow/stage"] == "true"


def test_a_stage_cannot_change_the_bundle(manifests):
    for name in STAGES:
        pod = pods(manifests)[name]["spec"]
        mounts = [mount for mount in pod["containers"][0]["volumeMounts"] if mount["name"] == "bundles"]
        assert all(mount["readOnly"] for mount in mounts)


def test_one_dicom_node_keeps_its_spool_on_a_volume_and_receives_from_named_addresses_only():
    manifests = rendered("example")
    node = of_kind(manifests, "Deployment")["dicom"]["spec"]
    assert (node["replicas"], node["strategy"]) == (1, {"type": "Recreate"}), "a spool has one node"
    (container,) = node["template"]["spec"]["containers"]
    environment = {variable["name"]: variable.get("value", "") for variable in container["env"]}
    (mount,) = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "spool"]
    assert environment["GLIAFLOW_DICOM_SPOOL"] == f"{mount}/dicom"
    settings = {f"GLIAFLOW_{name.upper()}" for name in Settings.model_fields}
    assert {name for name in environment if name.startswith("GLIAFLOW_DICOM")} <= settings
    storage = of_kind(manifests, "PersistentVolumeClaim")["spool"]["spec"]["resources"]["requests"]["storage"]
    default = Settings()
    assert int(storage.removesuffix("Gi")) > default.dicom_spool_gib + default.dicom_free_gib
    service = of_kind(manifests, "Service")["dicom"]
    assert service["spec"]["externalTrafficPolicy"] == "Local", "otherwise the policy sees the address of a node"
    (source,) = of_kind(manifests, "NetworkPolicy")["dicom"]["spec"]["ingress"]
    assert source["from"] == [{"ipBlock": {"cidr": "192.0.2.0/24"}}]


def test_one_console_keeps_its_scans_on_a_volume_and_is_open_to_no_other_pod():
    manifests = rendered("example")
    console = of_kind(manifests, "Deployment")["console"]["spec"]
    assert (console["replicas"], console["strategy"]) == (1, {"type": "Recreate"}), "a folder of scans has one console"
    pod = console["template"]["spec"]
    (container,) = pod["containers"]
    environment = {variable["name"]: variable.get("value", "") for variable in container["env"]}
    (mount,) = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "scans"]
    assert environment["GLIAFLOW_CONSOLE_FOLDER"] == f"{mount}/console"
    assert environment["GLIAFLOW_CONSOLE_TOKEN_FILE"] == "/run/secrets/broker/token"
    storage = of_kind(manifests, "PersistentVolumeClaim")["console"]["spec"]["resources"]["requests"]["storage"]
    assert int(storage.removesuffix("Gi")) > Settings().console_gib
    assert "type" not in of_kind(manifests, "Service")["console"]["spec"], "ClusterIP: no address outside the cluster"
    policies = of_kind(manifests, "NetworkPolicy")
    admitted = {
        name
        for name, one in policies.items()
        if one["spec"].get("ingress")
        and one["spec"]["podSelector"]["matchLabels"].items() <= console["template"]["metadata"]["labels"].items()
    }
    assert admitted == {"stages"}, "Prometheus, at the health port"
    (rule,) = policies["console-management"]["spec"]["ingress"]
    assert rule["from"] == [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": "console"}}}]


def test_a_dask_cluster_has_a_namespace_of_its_own_and_reaches_nobody_else():
    """Whoever reaches a scheduler or a worker can run code on it."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    manifests = rendered("dask")
    for one in manifests:
        kubernetes_validate.validate(one, VERSION, strict=True)
        assert one["kind"] == "Namespace" or one["metadata"]["namespace"] == "gliaflow-dask"
    assert set(pods(manifests)) == {"scheduler", "worker", "evaluate"}
    (scheduler,) = of_kind(manifests, "Service")["scheduler"]["spec"]["ports"]
    address = f"tcp://scheduler:{scheduler['port']}"
    for name, pod in pods(manifests).items():
        spec = pod["spec"]
        assert (spec["securityContext"]["runAsUser"], spec["automountServiceAccountToken"]) == (10001, False)
        (container,) = spec["containers"]
        assert container["image"] == f"gliaflow:{project_version()}-train", name
        assert container["securityContext"]["readOnlyRootFilesystem"], name
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name
        assert {"cpu", "memory"} == set(container["resources"]["limits"]), name
        assert named_secrets(spec) == set()
        if name != "scheduler":
            assert address in [*container.get("command", []), *container.get("args", [])]
            data = {mount["mountPath"]: mount.get("readOnly", False) for mount in container["volumeMounts"]}
            assert data == {"/cohorts": True, "/reports": False, "/tmp": False}, "the same paths in all pods"
    policies = {name: one["spec"] for name, one in of_kind(manifests, "NetworkPolicy").items()}
    assert policies["nothing"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    (rule_in,), (rule_out,) = policies["dask"]["ingress"], policies["dask"]["egress"]
    assert rule_in["from"] == rule_out["to"] == [{"podSelector": {}}], "pods of this namespace"
    listening = {8786, int(re.search(r"--worker-port=(\d+)", str(pods(manifests)["worker"])).group(1))}
    assert {port["port"] for port in rule_in["ports"]} == {port["port"] for port in rule_out["ports"]} == listening


def project_version() -> str:
    return tomllib.loads((MANIFESTS.parents[1] / "pyproject.toml").read_text())["project"]["version"]


def test_each_image_is_of_this_version(manifests):
    version = project_version()
    for name, pod in pods(manifests).items():
        (container,) = pod["spec"]["containers"]
        assert container["image"].rpartition(":")[2] in (
            version,
            f"{version}-gpu",
            f"{version}-train",
            f"{version}-dicom",
        ), name
