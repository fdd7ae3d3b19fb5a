"""deploy/kubernetes: valid by Kubernetes' own schemas, and true to what the image's runtime does."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import kubernetes_validate
import pytest
from mlflow.environment_variables import MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT
from mlflow_catdog.deployments import containers
from mlflow_catdog.deployments.options import Options
from mlflow_catdog.runtime import PORT, worker

from tests.docs import tables
from tests.manifests import BASE, KSERVE, Manifest, amount, container, kustomization, manifests, pod
from tests.unit.served import FakeModel, build, get

VERSIONS = ("1.30", "1.37")  # the oldest that has preStop's sleep switched on, and the newest that the schemas know
WORKER_MB = 407  # peak of one worker (docs/speed.md)
EXIT_S = 3.0  # of the processes, once they have drained


def predictor() -> Manifest:
    return dict(manifests(KSERVE)["InferenceService"]["spec"]["predictor"])


def predictor_pod() -> Manifest:
    """The predictor without KServe's own fields: a pod's."""
    own = ("minReplicas", "maxReplicas", "scaleMetric", "scaleTarget", "deploymentStrategy")
    return {name: value for name, value in predictor().items() if name not in own}


def validate(manifest: Manifest, version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", manifests(BASE))
def test_every_manifest_is_valid(kind: str, version: str):
    validate(manifests(BASE)[kind], version)


@pytest.mark.parametrize("version", VERSIONS)
def test_kserves_predictor_is_a_valid_pod(version: str):
    validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": predictor_pod()}, version)


def test_an_unknown_field_is_noticed():
    """The schemas are the strict ones."""
    misspelled = {**manifests(BASE)["Service"], "sepc": {}}
    with pytest.raises(kubernetes_validate.ValidationError, match="sepc"):
        validate(misspelled, VERSIONS[-1])


@pytest.mark.parametrize("folder", [BASE, KSERVE], ids=["base", "kserve"])
def test_the_kustomization_lists_every_file_and_sets_the_image(folder: Any):
    content = kustomization(folder)
    assert (content["apiVersion"], content["kind"]) == ("kustomize.config.k8s.io/v1beta1", "Kustomization")
    assert sorted(content["resources"]) == sorted(
        file.name for file in folder.iterdir() if file.name != "kustomization.yaml"
    )
    (image,) = content["images"]
    assert image.keys() == {"name", "newName", "newTag"}
    assert image["name"] == container(pod())["image"] == container(predictor())["image"]
    assert containers.image_tag("live") == f"{image['name']}:live"  # as docs/kubernetes.md calls it


def test_the_base_is_complete():
    kinds = {"Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy"}
    assert set(manifests(BASE)) == kinds
    assert {manifest["metadata"]["name"] for manifest in manifests(BASE).values()} == {"catdog"}


def test_selectors_match_the_pods():
    parts = {kind: manifest["spec"] for kind, manifest in manifests(BASE).items()}
    labels = parts["Deployment"]["template"]["metadata"]["labels"]
    assert labels
    assert parts["Deployment"]["selector"] == {"matchLabels": labels}
    assert parts["Service"]["selector"] == labels
    assert parts["PodDisruptionBudget"]["selector"] == {"matchLabels": labels}
    assert parts["NetworkPolicy"]["podSelector"] == {"matchLabels": labels}
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": manifests(BASE)["Deployment"]["metadata"]["name"]}
    assert parts["HorizontalPodAutoscaler"]["scaleTargetRef"] == target


def test_the_runtimes_port_is_the_only_way_in_and_there_is_none_out():
    parts = {kind: manifest["spec"] for kind, manifest in manifests(BASE).items()}
    assert container(pod())["ports"] == [{"name": "http", "containerPort": PORT}]
    assert [port["targetPort"] for port in parts["Service"]["ports"]] == ["http"]
    policy = parts["NetworkPolicy"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["ingress"] == [{"ports": [{"protocol": "TCP", "port": PORT}]}]
    assert "egress" not in policy


@pytest.mark.parametrize("asked", [pod, predictor_pod])
@pytest.mark.parametrize(
    ("probe", "while_draining"), [("startupProbe", 503), ("readinessProbe", 503), ("livenessProbe", 200)]
)
def test_probes_ask_what_the_runtime_answers(asked: Callable[[], Manifest], probe: str, while_draining: int):
    request = container(asked())[probe]["httpGet"]
    application, gateway = build(FakeModel(), api_keys=("a-key-0123456789",))  # kubelets have none
    assert request["port"] == PORT
    assert get(application, request["path"]).status_code == 200
    gateway.draining = True
    assert get(application, request["path"]).status_code == while_draining


def test_a_model_may_take_as_long_to_start_as_a_deployment_lets_it():
    startup = container(pod())["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= Options().ready_timeout_s
    assert startup["timeoutSeconds"] <= startup["periodSeconds"]


def test_a_busy_container_leaves_the_service_before_it_is_restarted():
    readiness, liveness = (container(pod())[name] for name in ("readinessProbe", "livenessProbe"))
    silent_s = [probe["periodSeconds"] * probe["failureThreshold"] for probe in (readiness, liveness)]
    assert silent_s[0] < silent_s[1]


def test_a_pod_has_time_to_finish_its_requests():
    sleep_s = container(pod())["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert sleep_s >= 5
    needed_s = sleep_s + worker._DRAIN_S + float(MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT.default) + EXIT_S
    assert pod()["terminationGracePeriodSeconds"] >= needed_s


def test_an_update_never_has_fewer_pods_than_before_and_the_autoscaler_alone_counts_them():
    spec = manifests(BASE)["Deployment"]["spec"]
    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
    assert "replicas" not in spec
    scaling = manifests(BASE)["HorizontalPodAutoscaler"]["spec"]
    assert 2 <= scaling["minReplicas"] < scaling["maxReplicas"]
    assert [metric["resource"]["name"] for metric in scaling["metrics"]] == ["cpu"]
    assert manifests(BASE)["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1


def test_a_pod_meets_the_restricted_pod_security_standard():
    security = pod()["securityContext"]
    assert security["runAsNonRoot"] is True
    assert f"{security['runAsUser']}:{security['runAsGroup']}" == containers._LOCKED_DOWN["user"]
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(pod())["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod())
    assert all(set(volume) == {"name", "emptyDir"} for volume in pod()["volumes"])


def test_a_pod_gets_no_token_and_no_variables_of_other_services():
    assert pod()["automountServiceAccountToken"] is False
    assert pod()["enableServiceLinks"] is False


def test_only_home_is_writable():
    (mount,) = container(pod())["volumeMounts"]
    (volume,) = pod()["volumes"]
    assert (mount["name"], mount["mountPath"]) == (volume["name"], "/tmp")
    assert amount(volume["emptyDir"]["sizeLimit"]) <= 2**28


def test_memory_fits_one_worker_for_each_core_of_the_limit():
    resources = container(pod())["resources"]
    limits, needed = resources["limits"], resources["requests"]
    workers = math.ceil(amount(limits["cpu"]))
    assert amount(needed["memory"]) >= workers * WORKER_MB * 1e6
    assert amount(limits["memory"]) >= 2 * workers * WORKER_MB * 1e6  # large images and bodies on top
    assert amount(needed["cpu"]) <= amount(limits["cpu"])


def test_kserve_runs_the_same_pod():
    ours, kserves = container(pod()), container(predictor_pod())
    assert kserves.pop("name") == "kserve-container"  # by which KServe finds it
    ours.pop("name")
    assert kserves.pop("ports") == [{"containerPort": PORT, "protocol": "TCP"}]
    ours.pop("ports")
    assert kserves == ours
    assert {**predictor_pod(), "containers": []} == {**pod(), "containers": []}


def test_kserve_scales_and_updates_like_the_base():
    scaling, strategy = manifests(BASE)["HorizontalPodAutoscaler"]["spec"], manifests(BASE)["Deployment"]["spec"]["strategy"]
    (metric,) = scaling["metrics"]
    assert predictor()["minReplicas"] == scaling["minReplicas"]
    assert predictor()["maxReplicas"] == scaling["maxReplicas"]
    assert predictor()["scaleMetric"] == metric["resource"]["name"]
    assert predictor()["scaleTarget"] == metric["resource"]["target"]["averageUtilization"]
    assert predictor()["deploymentStrategy"] == strategy
    annotations = manifests(KSERVE)["InferenceService"]["metadata"]["annotations"]
    assert annotations == {"serving.kserve.io/deploymentMode": "Standard"}


def test_the_docs_have_the_manifests_values():
    (table,) = (table for table in tables("kubernetes.md") if table[0][0] == "setting")
    written = {row[0]: row[1] for row in table[1:]}
    spec, scaling = container(pod()), manifests(BASE)["HorizontalPodAutoscaler"]["spec"]
    requests, limits = spec["resources"]["requests"], spec["resources"]["limits"]
    assert written["minReplicas, maxReplicas"] == f"{scaling['minReplicas']}, {scaling['maxReplicas']}"
    assert written["averageUtilization"] == f"{scaling['metrics'][0]['resource']['target']['averageUtilization']} %"
    assert written["CPU request, limit"] == f"{requests['cpu']} core, {limits['cpu']} cores"
    assert written["memory request, limit"] == f"{requests['memory'][:-2]} GiB, {limits['memory'][:-2]} GiB"
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        path, seconds = spec[probe]["httpGet"]["path"], spec[probe]["periodSeconds"] * spec[probe]["failureThreshold"]
        assert written[probe] == f"{path}, {seconds} s"
    assert written["preStop"] == f"{spec['lifecycle']['preStop']['sleep']['seconds']} s"
    assert written["terminationGracePeriodSeconds"] == f"{pod()['terminationGracePeriodSeconds']} s"
    assert written["/tmp"] == f"emptyDir, {pod()['volumes'][0]['emptyDir']['sizeLimit'][:-2]} MiB"
