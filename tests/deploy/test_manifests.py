"""What stands in deploy/, without a container engine: by the tools' own validators, and for what they do not ask."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
BIN = Path(sys.executable).parent
SECRETS = dict.fromkeys(("POSTGRES_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY"), "s") | {"TAMIS_FOLDER": "/srv"}
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def run(*command: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    clean = {name: value for name, value in os.environ.items() if name not in SECRETS}
    return subprocess.run(list(map(str, command)), env=clean | environment, capture_output=True, text=True)


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text()))


def pods() -> list[dict[str, Any]]:
    return [it["spec"]["template"]["spec"] for it in documents("servers.yaml") if "template" in it.get("spec", {})]


def test_compose_takes_the_file_with_the_secrets_and_refuses_it_without_any_one_of_them() -> None:
    config = [BIN / "docker-compose", "-f", DEPLOY / "compose.yaml", "config", "--quiet"]
    done = run(*config, **SECRETS)
    assert (done.returncode, done.stderr) == (0, "")
    for missing in SECRETS:
        done = run(*config, **{name: value for name, value in SECRETS.items() if name != missing})
        assert done.returncode != 0
        assert f"set {missing}" in done.stderr


def test_kubernetes_takes_the_manifests() -> None:
    files = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
    done = run(BIN / "kubernetes-validate", "--strict", *files)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_linter_of_dockerfiles_has_nothing_to_say() -> None:
    done = run(BIN / "hadolint", DEPLOY / "Dockerfile")
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_every_service_is_watched_limited_and_open_to_this_machine_alone(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["healthcheck"]["test"]
    assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory"}
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    for key, value in service["environment"].items():
        if re.search("PASSWORD|SECRET|ACCESS_KEY", key):
            assert re.fullmatch(r"\$\{(\w+):\?set \1\}", value), f"{key} has a default"


def test_every_pod_is_watched_limited_unprivileged_and_has_its_secrets_from_one_that_is_not_here() -> None:
    assert len(pods()) == len(COMPOSE["services"])
    assert "Secret" not in {it["kind"] for it in documents("servers.yaml")}
    for pod in pods():
        [container] = pod["containers"]
        assert container["resources"]["limits"].keys() == container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert container["livenessProbe"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        for variable in container["env"]:
            if re.search("PASSWORD|SECRET|ACCESS_KEY", variable["name"]):
                assert variable["valueFrom"]["secretKeyRef"]["name"] == "tamis"


def test_the_pods_of_cycles_are_unprivileged_and_have_their_secrets_from_one_that_is_not_here() -> None:
    pool = json.loads((DEPLOY / "kubernetes" / "work-pool.json").read_text())
    job = pool["job_configuration"]["job_manifest"]
    assert pool["variables"]["properties"]["secret"]["default"] == "tamis"
    for found in (job, documents("cycle.yaml")[1]):
        pod = found["spec"]["template"]["spec"]
        [container] = pod["containers"]
        assert pod["enableServiceLinks"] is pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        given = {it["name"]: it["valueFrom"]["secretKeyRef"]["name"] for it in container["env"] if "valueFrom" in it}
        assert given.keys() == {"PGPASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
        assert set(given.values()) <= {"tamis", "{{ secret }}"}


def test_no_address_in_the_folder_holds_a_password() -> None:
    for path in DEPLOY.rglob("*"):
        if path.is_file() and "workspace" not in path.parts:  # what a cycle that ran here left, numbers among it
            assert not re.search(rb"://[^/\s@:]+:[^/\s@]+@", path.read_bytes()), path


def test_both_platforms_start_the_same_servers_with_the_same_commands() -> None:
    ours = {pod["containers"][0]["name"]: pod["containers"][0] for pod in pods()}
    for name in ("mlflow", "prefect", "worker", "reviews", "s3"):
        theirs = COMPOSE["services"][name]["command"]
        found = ours[name].get("command") or ours[name]["args"]
        vary = ("--allowed-hosts", "-ip=")
        assert [it for it in found if not it.startswith(vary)] == [it for it in theirs if not it.startswith(vary)]


def test_a_run_that_ended_by_any_name_is_not_called_lost() -> None:
    from prefect.client.schemas.objects import TERMINAL_STATES
    from prefect.events.schemas.automations import AutomationCore, EventTrigger

    from flows.orchestration import AWAITING, SKIPPED

    lost = AutomationCore.model_validate(yaml.safe_load((DEPLOY / "lost-runs.yaml").read_text()))
    assert isinstance(lost.trigger, EventTrigger)
    ends = {*(state.value.capitalize() for state in TERMINAL_STATES), AWAITING, SKIPPED}
    assert lost.trigger.expect == {f"prefect.flow-run.{name}" for name in {*ends, "heartbeat"}}
