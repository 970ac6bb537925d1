"""What is in `deploy/` is right by its own tools, and what it starts, starts.

The commands of units and chart are run for real, with folders, ports and names that a test can have in
the place of those of a machine of its own; nothing else of them is changed.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import hcl2
import kubernetes_validate
import pytest
import yaml
from botocore.config import Config

from holdfast.node.config_cluster import Engine
from holdfast.node.credentials import from_secret
from tests.kit.cluster import SECRET, TestCluster
from tests.kit.ports import free_ports
from tests.kit.process import PROGRAM, REGION
from tests.kit.supervised import Supervised

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
CHART = DEPLOY / "helm" / "holdfast"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
KUBERNETES = ("1.27", "1.35")
WATCHDOG_S = 1.0

pytestmark = pytest.mark.slow


# systemd


def put_in_place(text: str, places: dict[str, str]) -> str:
    """`text` with every place of a real machine replaced."""
    for place, ours in places.items():
        text = text.replace(place, ours)
    return text


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_is_right_for_systemd(tmp_path: Path, unit: Path) -> None:
    ours = tmp_path / unit.name
    ours.write_text(put_in_place(unit.read_text(), {"/opt/holdfast/bin/holdfast": str(PROGRAM)}))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", ours],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if unit.name in line]
    assert not said, done.stderr
    assert done.returncode == 0, done.stderr


def command_of(unit: Path, places: dict[str, str]) -> list[str]:
    found = re.search(r"^ExecStart=(.+)$", unit.read_text(), re.MULTILINE)
    assert found is not None
    return put_in_place(found[1], places).split()


def test_the_units_start_a_node_and_a_balancer_that_say_how_they_are(tmp_path: Path) -> None:
    s3, front = free_ports(2)
    etc = tmp_path / "etc"
    etc.mkdir()
    stores = "".join(f'[[store]]\npath = "{tmp_path}/disk{number}"\n' for number in range(1, 4))
    (etc / "holdfast.toml").write_text(
        f'data = "{tmp_path}/data"\nport = {s3}\n[balancer]\nsecret = "sixteen-or-more-letters"\n{stores}'
    )
    (etc / "balance.toml").write_text(
        f'listen = "127.0.0.1:{front}"\nnodes = ["127.0.0.1:{s3}"]\ndir = "{tmp_path}/balance"\n'
        'secret = "sixteen-or-more-letters"\nnotice = 0\nthreads = 1\n'
    )
    places = {"/opt/holdfast/bin/holdfast": str(PROGRAM), "/etc/holdfast": str(etc)}
    balance, serve = (command_of(unit, places) for unit in UNITS)
    with Supervised(serve, tmp_path, watchdog_s=WATCHDOG_S) as node:
        node.hear("READY=1")
        with Supervised(balance, tmp_path, watchdog_s=WATCHDOG_S) as balancer:
            balancer.hear("READY=1")
            balancer.hear("WATCHDOG=1")
            assert balancer.stop() == 0
        node.hear("WATCHDOG=1")
        assert node.stop() == 0


# Kubernetes


def helm(*arguments: str | Path) -> str:
    done = subprocess.run(
        ["helm", *map(str, arguments), "--kube-version", f"{KUBERNETES[-1]}.0"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


VALUES = {
    "one set": ["--set", "existingSecret=holdfast"],
    "zones": ["--values", str(CHART / "ci" / "zones-values.yaml")],
}


@pytest.fixture(params=VALUES)
def documents(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """What the chart comes to."""
    return list(yaml.safe_load_all(helm("template", "hf", CHART, *VALUES[request.param])))


def of_kind(documents: list[dict[str, Any]], kind: str) -> Iterator[dict[str, Any]]:
    yield from (document for document in documents if document["kind"] == kind)


@pytest.mark.parametrize("values", VALUES)
def test_the_chart_is_right_for_helm(values: str) -> None:
    helm("lint", "--strict", CHART, *VALUES[values])


def test_the_chart_is_right_for_kubernetes(documents: list[dict[str, Any]]) -> None:
    for document in documents:
        for version in KUBERNETES:
            kubernetes_validate.validate(document, version, strict=True)


def test_a_missing_secret_and_a_misspelt_value_are_refused() -> None:
    for wrong in (["--set", "nodes.replicas=3"], ["--set", "existingSecret=x,nodes.replica=3"]):
        done = subprocess.run(
            ["helm", "template", "hf", CHART, *wrong, "--kube-version", "1.31.0"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode != 0
        assert "existingSecret is missing" in done.stderr or "replica" in done.stderr


def test_what_selects_pods_selects_them_and_no_others(documents: list[dict[str, Any]]) -> None:
    pods = {
        (document["metadata"]["name"], part): document["spec"]["template"]["metadata"]["labels"]
        for kind, part in (("StatefulSet", "node"), ("Deployment", "balancer"))
        for document in of_kind(documents, kind)
    }

    def selected(labels: dict[str, str]) -> set[str]:
        return {part for (_, part), pod in pods.items() if labels.items() <= pod.items()}

    for service in of_kind(documents, "Service"):
        nodes = service["metadata"]["name"].endswith("-nodes")
        assert selected(service["spec"]["selector"]) == {"node" if nodes else "balancer"}
    budgets = list(of_kind(documents, "PodDisruptionBudget"))
    assert {part for one in budgets for part in selected(one["spec"]["selector"]["matchLabels"])} == {
        "node",
        "balancer",
    }
    assert all(one["spec"]["maxUnavailable"] == 1 for one in budgets)
    for kind in ("StatefulSet", "Deployment"):
        for document in of_kind(documents, kind):
            labels = document["spec"]["template"]["metadata"]["labels"]
            assert document["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_what_the_chart_starts_is_a_node_and_a_balancer_before_it(tmp_path: Path) -> None:
    s3, peers, front = free_ports(3)
    documents = list(
        yaml.safe_load_all(helm("template", "hf", CHART, "--set", "existingSecret=x,nodes.stores=3"))
    )
    pod = next(of_kind(documents, "StatefulSet"))["spec"]["template"]["spec"]
    names = {item["mountPath"] for item in pod["containers"][0]["volumeMounts"]}
    for name in (
        "etc/secret",
        "run",
        "data",
        *(f"stores/{Path(name).name}" for name in names if "stores" in name),
    ):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "etc" / "secret" / "secret").write_bytes(SECRET)
    (tmp_path / "etc" / "secret" / "index").write_text(TestCluster(tmp_path, Engine.ETCD).index)
    places = {
        "/etc/holdfast": str(tmp_path / "etc"),
        "/run/holdfast": str(tmp_path / "run"),
        "/var/lib/holdfast": str(tmp_path / "data"),
        "/stores": str(tmp_path / "stores"),
        "$POD_NAME.hf-holdfast-nodes.$POD_NAMESPACE.svc": "127.0.0.1",
        "hf-holdfast-0.hf-holdfast-nodes.$POD_NAMESPACE.svc": "127.0.0.1",
        "0.0.0.0": "127.0.0.1",
        "port = 9000": f"port = {s3}",
        'listen = "127.0.0.1:9000"': f'listen = "127.0.0.1:{front}"',
        ":9000": f":{s3}",
        ":9100": f":{peers}",
        "exec holdfast": f"exec {PROGRAM}",
        "$(holdfast": f"$({PROGRAM}",
    }
    scripts = next(of_kind(documents, "ConfigMap"))["data"]
    for name, script in scripts.items():
        (tmp_path / name).write_text(put_in_place(script, places))
    environment = {"POD_NAME": "hf-holdfast-0", "POD_NAMESPACE": "default", "ZONE": ""}
    with (
        Supervised(["/bin/sh", tmp_path / "node"], tmp_path, environment) as node,
        Supervised(["/bin/sh", tmp_path / "balancer"], tmp_path, environment) as balancer,
    ):
        node.hear("READY=1")
        balancer.hear("READY=1")
        credentials = from_secret(SECRET)
        client = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{front}",
            aws_access_key_id=credentials.access_key_id,
            aws_secret_access_key=credentials.secret_access_key,
            region_name=REGION,
            config=Config(retries={"total_max_attempts": 10}),
        )
        client.create_bucket(Bucket="bucket")
        client.put_object(Bucket="bucket", Key="key", Body=b"body")
        assert client.get_object(Bucket="bucket", Key="key")["Body"].read() == b"body"
        # What Kubernetes does before it stops a node: the only one there is may not go.
        before = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        before[before.index("--wait") + 1] = "0"
        asked = [put_in_place(word, places) for word in before]
        done = subprocess.run([PROGRAM, *asked[1:]], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, "No other node is ready" in done.stdout + done.stderr) == (75, True), done
        assert node.stop() == 0


# Terraform


def test_what_terraform_reads_can_be_read_and_refers_to_what_is_there() -> None:
    folder = DEPLOY / "terraform" / "aws"
    text = {path.name: path.read_text() for path in sorted(folder.glob("*.tf"))}
    there: set[str] = set()
    for name, content in text.items():
        parsed = hcl2.loads(content)
        assert parsed, name
        there |= {f"var.{found}" for found in re.findall(r'^variable "(\w+)"', content, re.MULTILINE)}
        there |= {
            f"{kind}.{own}" for kind, own in re.findall(r'^resource "(\w+)" "(\w+)"', content, re.MULTILINE)
        }
        there |= {
            f"ephemeral.{a}.{b}" for a, b in re.findall(r'^ephemeral "(\w+)" "(\w+)"', content, re.MULTILINE)
        }
        for block in re.findall(r"^locals \{\n(.*?)^\}", content, re.MULTILINE | re.DOTALL):
            there |= {f"local.{found}" for found in re.findall(r"^  (\w+) +=", block, re.MULTILINE)}
    everything = "\n".join(text.values())
    used = set(re.findall(r"\b(?:var|local)\.\w+|\bephemeral\.\w+\.\w+|(?<![.\w])aws_\w+\.\w+", everything))
    assert not used - there
    assert not {name for name in there - used if name.startswith(("var.", "local."))}
    given = set(
        re.findall(r"^    (\w+) += ", text["nodes.tf"].partition("templatefile")[2].partition("}))")[0], re.M)
    )
    script = (folder / "start.sh.tftpl").read_text()
    wanted = set(re.findall(r"(?<!\$)\$\{(?:join\([^,]+, )?(\w+)", script)) | {"slots"}
    assert wanted - {"slot"} == given


def test_the_script_of_a_machine_is_right_for_the_shell(tmp_path: Path) -> None:
    script = (DEPLOY / "terraform" / "aws" / "start.sh.tftpl").read_text()
    script = re.sub(r"^%\{.*\}\n", "", script, flags=re.MULTILINE)
    script = re.sub(r"(?<!\$)\$\{[^}]*\}", "value", script).replace("$${", "${")
    (tmp_path / "start.sh").write_text(script)
    done = subprocess.run(["bash", "-n", tmp_path / "start.sh"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# Container


def test_the_image_has_what_it_copies_and_starts_what_there_is() -> None:
    root = DEPLOY.parent
    lines = (DEPLOY / "container" / "Containerfile").read_text().splitlines()
    copied = [
        word
        for line in lines
        if line.startswith("COPY") and "--from" not in line
        for word in line.split()[1:-1]
    ]
    assert copied
    kept = {
        line.removeprefix("!")
        for line in (root / ".dockerignore").read_text().splitlines()
        if line[:1] == "!"
    }
    assert set(copied) == kept
    assert all((root / name).exists() for name in copied)
    (command,) = (line for line in lines if line.startswith("CMD"))
    done = subprocess.run(
        [sys.executable, "-m", "holdfast.cli.main", *yaml.safe_load(command.removeprefix("CMD ")), "--help"],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
