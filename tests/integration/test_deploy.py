"""The manifests and compose.yaml fit the service. No cluster and no Docker runs here."""

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from compose_spec import PyCompose
from server import ROOT, bentoml_command

from cli.server import TIMEOUTS
from service.settings import PREFIX, Settings

KUBERNETES = ROOT / "deploy" / "kubernetes"
MANIFESTS = sorted(set(KUBERNETES.rglob("*.yaml")) - {KUBERNETES / "monitoring" / "adapter-values.yaml"})
KUSTOMIZATIONS = [path for path in MANIFESTS if path.name == "kustomization.yaml"]
OF_KUBERNETES = [
    path for path in MANIFESTS if path.name not in {"kustomization.yaml", "servicemonitor.yaml"}
    and path.parent.name not in {"kserve", "kuberay"}
]  # fmt: skip
NEWEST = kubernetes_validate.latest_version()
OLDEST = "1.30"  # the first with preStop's `sleep` unasked
BENTOMLS = {"BENTOML_HOME", "BENTOML_DO_NOT_TRACK"}
COMPOSE = ROOT / "deploy" / "compose.yaml"


def read(name: str | Path) -> dict:
    return yaml.safe_load((KUBERNETES / name).read_text())


def pod_of(name: str) -> dict:
    return read(name)["spec"]["template"]["spec"]


def container() -> dict:
    (only,) = pod_of("deployment.yaml")["containers"]
    return only


def seconds(args: list[str], option: str) -> int:
    return int(args[args.index(option) + 1])


def test_kustomizations_list_all_manifests():
    for path in KUSTOMIZATIONS:
        kustomization = read(path)
        listed = kustomization.get("resources", []) + [patch["path"] for patch in kustomization.get("patches", [])]
        assert listed == [other.name for other in MANIFESTS if other.parent == path.parent and other != path]


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("path", OF_KUBERNETES, ids=lambda path: str(path.relative_to(KUBERNETES)))
def test_manifests_follow_the_schemas_of_kubernetes(path, version):
    manifest = read(path)
    if path.parent.name == "keys":  # a patch: what it leaves out, the Deployment has
        patched = read("deployment.yaml")["spec"]
        manifest["spec"]["selector"], manifest["spec"]["template"]["metadata"] = (
            patched["selector"], patched["template"]["metadata"],
        )  # fmt: skip
    kubernetes_validate.validate(manifest, version, strict=True)


def test_schemas_refuse_unknown_fields():
    manifest = read("deployment.yaml")
    manifest["spec"]["template"]["spec"]["containers"][0]["readOnly"] = True
    with pytest.raises(kubernetes_validate.ValidationError, match="readOnly"):
        kubernetes_validate.validate(manifest, NEWEST, strict=True)


def test_variables_are_settings():
    known = {PREFIX + name.upper() for name in Settings.model_fields} | BENTOMLS
    (patched,) = pod_of("keys/deployment.yaml")["containers"]
    composed = yaml.safe_load(COMPOSE.read_text())["services"]["mcd"]["environment"]
    named = [one["name"] for one in container()["env"] + patched["env"]] + list(composed)
    assert set(named) <= known
    assert "MCD_API_KEYS_FILE" in named


def test_the_keys_are_where_the_setting_says():
    pod = pod_of("keys/deployment.yaml")
    (patched,) = pod["containers"]
    assert patched["name"] == container()["name"]
    (mount,), (volume,), (variable,) = patched["volumeMounts"], pod["volumes"], patched["env"]
    assert volume["name"] == mount["name"]
    assert not volume["secret"].get("optional")
    folder, _, name = variable["value"].rpartition("/")
    assert folder == mount["mountPath"]
    assert f"--from-file={name}=" in (ROOT / "docs" / "deployment.md").read_text()


def test_probes_are_answered(client):
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container()[probe]["httpGet"]
        assert client.get(asked["path"]).status_code == 200
        assert asked["port"] in {port["name"] for port in container()["ports"]}
    (endpoint,) = read("monitoring/servicemonitor.yaml")["spec"]["endpoints"]
    assert client.get(endpoint["path"]).text.startswith("# HELP mcd_")


def test_ports_and_labels_agree():
    (port,) = container()["ports"]
    assert seconds(container()["args"], "--port") == port["containerPort"]
    service, monitor = read("service.yaml"), read("monitoring/servicemonitor.yaml")["spec"]
    (served,), (endpoint,) = service["spec"]["ports"], monitor["endpoints"]
    assert (served["targetPort"], served["port"]) == (port["name"], port["containerPort"])
    assert endpoint["port"] == served["name"]
    labels = read("deployment.yaml")["spec"]["template"]["metadata"]["labels"]
    for selected in (
        service["spec"]["selector"],
        *(read(name)["spec"]["selector"]["matchLabels"] for name in ("deployment.yaml", "poddisruptionbudget.yaml")),
    ):
        assert selected.items() <= labels.items()
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert read("horizontalpodautoscaler.yaml")["spec"]["scaleTargetRef"] == {
        "apiVersion": "apps/v1", "kind": "Deployment", "name": read("deployment.yaml")["metadata"]["name"],
    }  # fmt: skip
    # the alerts name the job, for which the Prometheus Operator takes the Service's name
    assert f'job="{service["metadata"]["name"]}"' in (ROOT / "deploy" / "prometheus" / "alerts.yml").read_text()


def test_the_autoscaler_uses_metrics_that_the_adapter_provides(client):
    rules = read("monitoring/adapter-values.yaml")["rules"]["custom"]
    asked = [metric["pods"]["metric"]["name"] for metric in read("horizontalpodautoscaler.yaml")["spec"]["metrics"]
             if metric["type"] == "Pods"]  # fmt: skip
    assert asked == [rule["name"]["as"] for rule in rules]
    shown = client.get("/metrics").text
    for rule in rules:
        series, labels = re.fullmatch(r"(\w+)\{(.*)\}", rule["seriesQuery"]).groups()
        own = [label for label in labels.split(",") if "!=" not in label]
        assert re.search(rf"^{series}{{?.*{re.escape(','.join(own))}", shown, re.MULTILINE), series
        assert all(label in rule["metricsQuery"] for label in own)
        assert set(rule["resources"]["overrides"]) == set(re.findall(r'(\w+)!=""', labels))


def test_pods_have_time_to_shut_down():
    pod, args = pod_of("deployment.yaml"), container()["args"]
    assert args[0] == "serve"
    pause = container()["lifecycle"]["preStop"]["sleep"]["seconds"]
    ends = pause + seconds(args, "--timeout-graceful-shutdown")
    assert pod["terminationGracePeriodSeconds"] > ends
    # the same bounds as `make serve`, and options that there are: bentoml hides one of them from its help
    assert tuple(args[1:5]) == TIMEOUTS
    completed = subprocess.run(bentoml_command(*args, "nothing-here"), capture_output=True, text=True, check=False)
    assert "No such option" not in completed.stderr


def test_pods_have_few_permissions_and_the_folders_they_write():
    pod, only = pod_of("deployment.yaml"), container()
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert only["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    variables = {one["name"]: one["value"] for one in only["env"]}
    assert variables["MCD_WORKERS"] == "1"
    assert {mount["mountPath"] for mount in only["volumeMounts"]} == {variables["BENTOML_HOME"], "/tmp"}  # noqa: S108
    empty = {volume["name"] for volume in pod["volumes"] if "emptyDir" in volume}
    assert empty == {mount["name"] for mount in only["volumeMounts"]}


def test_kserve_runs_the_same_container(client):
    runtime, predictor = read("kserve/servingruntime.yaml"), read("kserve/inferenceservice.yaml")["spec"]["predictor"]
    (served,) = runtime["spec"]["containers"]
    assert served == container() | {"name": "kserve-container"}
    pod = pod_of("deployment.yaml")
    assert [volume["name"] for volume in runtime["spec"]["volumes"]] == [volume["name"] for volume in pod["volumes"]]
    for name in ("automountServiceAccountToken", "terminationGracePeriodSeconds", "securityContext"):
        assert predictor[name] == pod[name]
    model = predictor["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["modelFormat"] in runtime["spec"]["supportedModelFormats"]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    assert client.get(f"/v2/models/{model['modelFormat']['name']}/ready").status_code == 200


def test_the_ray_job_names_an_existing_version_and_command():
    """There is no schema of RayJob here; of its pods there is."""
    spec = read("kuberay/rayjob.yaml")["spec"]
    cluster = spec["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ray"}, **group["template"]}
        kubernetes_validate.validate(pod, OLDEST, strict=True)
    assert f"ray=={cluster['rayVersion']}\n" in (ROOT / "constraints.txt").read_text()
    python, *words = spec["entrypoint"].split()
    assert python == "python"
    told = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert "/data/in: there is no such file or folder" in told.stderr


def test_compose_follows_the_specification():
    text = COMPOSE.read_text()
    assert set(PyCompose.from_yaml(text).to_spec().services) == {"mcd", "prometheus", "grafana"}
    with pytest.raises(ValueError, match="cap_dropped"):
        PyCompose.from_yaml(text.replace("cap_drop", "cap_dropped"))


def test_compose_mounts_existing_files_and_listens_on_localhost_only():
    compose = yaml.safe_load(COMPOSE.read_text())
    services = compose["services"]
    for name, service in services.items():
        assert service["image"] == "mcd:latest" or re.search(r":v?\d+\.\d+\.\d+$", service["image"]), name
        assert "healthcheck" in service
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        for source, target, *_ in (mount.split(":") for mount in service.get("volumes", [])):
            if source.startswith("."):
                made_elsewhere = "grafana" in source and not (COMPOSE.parent / "grafana").exists()
                assert (COMPOSE.parent / source).exists() or made_elsewhere, source
            else:
                assert source in compose["volumes"], target
    assert seconds(services["mcd"]["command"], "--timeout-graceful-shutdown") < int(
        services["mcd"]["stop_grace_period"].removesuffix("s")
    )
    (job,) = yaml.safe_load((COMPOSE.parent / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    ((target,),) = [static["targets"] for static in job["static_configs"]]
    # Prometheus shares mcd's network, so that localhost is the service to it, too
    assert services["prometheus"]["network_mode"] == "service:mcd"
    assert target == f"localhost:{seconds(services['mcd']['command'], '--port')}"
    published = list(itertools.chain(*(service.get("ports", []) for service in services.values())))
    assert {port.rpartition(":")[2] for port in published} == {"3000", "9090", "3001"}
    assert json.dumps(compose).count("network_mode") == len(services) - 1
