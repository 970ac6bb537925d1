"""`/-/metrics` of a real node: Prometheus can read it, if it may, and alerts ask for what is there."""

import json
import re
import stat
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tests.kit.process import NodeProcess, wait_until

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
PROMETHEUS_OWN = {"up"}
"""What Prometheus itself knows of what it scrapes."""

WORDS = frozenset(
    """and or unless offset bool sum min max avg count topk rate increase predict_linear
    histogram_quantile""".split()  # noqa: SIM905
)
"""What is PromQL in the expressions, and no metric."""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    with NodeProcess(tmp_path_factory.mktemp("metrics")) as node:
        client = node.s3()
        client.create_bucket(Bucket="photos")
        client.put_object(Bucket="photos", Key="k", Body=b"x" * 5000)
        for _ in range(3):
            client.get_object(Bucket="photos", Key="k")["Body"].read()
        with pytest.raises(client.exceptions.ClientError):
            client.get_object(Bucket="photos", Key="none")
        wait_until("packs to be counted", lambda: value(samples(node), "holdfast_packs") >= 1)
        yield node


def scrape(node: NodeProcess, authorization: str) -> tuple[int, str]:
    request = urllib.request.Request(f"{node.endpoint}/-/metrics")
    if authorization:
        request.add_header("Authorization", authorization)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def token(node: NodeProcess) -> str:
    return (node.data / "metrics-token").read_text().strip()


def samples(node: NodeProcess) -> list[Sample]:
    status, text = scrape(node, f"Bearer {token(node)}")
    assert status == 200
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def value(found: list[Sample], name: str, **labels: str) -> float:
    (match,) = [sample.value for sample in found if sample.name == name and sample.labels == labels]
    return match


def test_only_who_holds_the_token_may_look(node: NodeProcess) -> None:
    assert scrape(node, "")[0] == 401
    assert scrape(node, "Bearer no")[0] == 401
    assert scrape(node, f"Basic {token(node)}")[0] == 401
    assert scrape(node, f"bearer {token(node)}")[0] == 200
    assert "photos" not in scrape(node, "")[1]
    mode = stat.S_IMODE((node.data / "metrics-token").stat().st_mode)
    assert mode == 0o600


def test_what_clients_did_is_what_it_says(node: NodeProcess) -> None:
    found = samples(node)
    assert value(found, "holdfast_requests_total", operation="GetObject", result="2xx") == 3
    assert value(found, "holdfast_requests_total", operation="GetObject", result="4xx") == 1
    assert value(found, "holdfast_requests_measured_total", operation="GetObject") == 4
    assert value(found, "holdfast_requests_failed_total", operation="GetObject") == 0
    assert value(found, "holdfast_request_received_bytes_total", operation="PutObject") == 5000
    assert value(found, "holdfast_response_sent_bytes_total", operation="GetObject") > 15_000
    assert value(found, "holdfast_request_wait_seconds_count", operation="GetObject") == 4
    assert value(found, "holdfast_request_wait_seconds_bucket", operation="GetObject", le="+Inf") == 4
    assert value(found, "holdfast_store_state", store="disk1", state="healthy") == 1
    written = [sample.value for sample in found if sample.name == "holdfast_store_calls_total"]
    assert len(written) == 12
    assert sum(written) >= 3
    assert value(found, "holdfast_index_members") == 5
    assert value(found, "holdfast_index_commit_seconds_count") >= 2
    assert value(found, "process_resident_memory_bytes") > 10 << 20
    assert {sample.labels["chore"] for sample in found if sample.name == "holdfast_chore_state"} >= {"repair"}


def test_every_member_of_the_index_is_current(node: NodeProcess) -> None:
    # One that a busy disk made late has left, and comes back.
    wait_until("all to be", lambda: value(samples(node), "holdfast_index_members_current") == 5)


def test_each_family_has_a_type_a_help_and_unique_samples(node: NodeProcess) -> None:
    families = list(text_string_to_metric_families(scrape(node, f"Bearer {token(node)}")[1]))
    assert len({family.name for family in families}) == len(families)
    for family in families:
        assert family.documentation
        assert family.type in {"counter", "gauge", "histogram"}
        assert re.fullmatch(r"(holdfast|process)_[a-z_]+", family.name)
        keys = [(sample.name, tuple(sorted(sample.labels.items()))) for sample in family.samples]
        assert len(set(keys)) == len(keys)


def exported(node: NodeProcess) -> set[str]:
    """Every name that a sample may have."""
    families = text_string_to_metric_families(scrape(node, f"Bearer {token(node)}")[1])
    suffixes = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
    return {family.name + suffix for family in families for suffix in suffixes[family.type]}


def metrics_in(expression: str) -> set[str]:
    """The metrics that a PromQL expression names."""
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]", " ", bare)
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", bare)
    bare = re.sub(r"label_values\((\w+),[^)]*\)", r"\1", bare)
    return set(re.findall(r"\b[a-zA-Z_:][a-zA-Z0-9_:]*", bare)) - WORDS


def alert_rules() -> list[dict[str, Any]]:
    document = yaml.safe_load((DEPLOY / "prometheus" / "holdfast-alerts.yml").read_text())
    return [rule for group in document["groups"] for rule in group["rules"]]


def test_every_alert_says_what_to_do_and_asks_for_what_is_exported(node: NodeProcess) -> None:
    names = exported(node) | PROMETHEUS_OWN
    found = samples(node)
    rules = alert_rules()
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert set(rule["annotations"]) == {"summary", "action"}
        assert rule["expr"].count("(") == rule["expr"].count(")")
        asked = metrics_in(rule["expr"])
        assert asked, rule["alert"]
        assert asked <= names, rule["alert"]
        labels = {label for sample in found if sample.name in asked for label in sample.labels}
        said = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
        assert said <= labels | {"instance", "job"}, rule["alert"]


def test_the_dashboard_asks_for_what_is_exported(node: NodeProcess) -> None:
    names = exported(node)
    dashboard = json.loads((DEPLOY / "grafana" / "holdfast.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    expressions += [entry["definition"] for entry in dashboard["templating"]["list"] if "definition" in entry]
    assert len(expressions) > 20
    for expression in expressions:
        assert metrics_in(expression), expression
        assert metrics_in(expression) <= names, expression
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_a_store_that_is_lost_shows(node: NodeProcess) -> None:
    (node.data / "disk4").rename(node.data / "elsewhere")
    wait_until("the store to be down", lambda: value(samples(node), "holdfast_store_up", store="disk4") == 0)
    (node.data / "elsewhere").rename(node.data / "disk4")


def test_it_can_be_open_to_everybody(tmp_path: Path) -> None:
    (tmp_path / "holdfast.toml").write_text("[metrics]\nopen = true\n[ledger]\ncanary = false\n")
    with NodeProcess(tmp_path) as node:
        status, text = scrape(node, "")
        assert status == 200
        assert "holdfast_build_info" in text
        assert not (node.data / "metrics-token").exists()
