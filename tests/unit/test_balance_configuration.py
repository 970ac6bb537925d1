"""What Envoy is told, from settings and a view: pure, so that each promise is a look at the document."""

import json
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.balance import bootstrap, listener, nodes_cluster
from holdfast.balance.process import find_envoy
from holdfast.balance.settings import Settings, load_settings
from holdfast.balance.view import Endpoint, View, split_address, view_of
from holdfast.base.errors import InvalidInput

FULL = """
listen = "0.0.0.0:9000"
nodes = ["10.0.0.1:9000", { address = "[fe80::1]:9001", region = "eu", zone = "b" }]
dir = "run"
secret = "abcdefghijklmnop"
region = "eu"
zone = "a"
retry_body = "2 MiB"
access_log = "log.json"
threads = 2
connections = 100
drain = "2 min"
notice = 0

[tls]
certificate = "tls.crt"
key = "tls.key"
"""


def read(where: Path, text: str) -> Settings:
    path = where / "balance.toml"
    path.write_text(text)
    return load_settings(path)


def plain(document: object) -> Any:
    """As it is written: what is not JSON would fail here."""
    return json.loads(msgspec.json.encode(document))


def routes_of(settings: Settings) -> list[dict[str, Any]]:
    chain = plain(listener.listener(settings, "certificate.json"))["filter_chains"][0]
    manager = chain["filters"][0]["typed_config"]
    found: list[dict[str, Any]] = manager["route_config"]["virtual_hosts"][0]["routes"]
    return found


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    settings = read(tmp_path, FULL)
    assert settings == Settings(
        listen_host="0.0.0.0",
        listen_port=9000,
        nodes=(
            Endpoint("10.0.0.1", 9000, "10.0.0.1:9000"),
            Endpoint("fe80::1", 9001, "[fe80::1]:9001", "eu", "b"),
        ),
        directory=tmp_path / "run",
        secret="abcdefghijklmnop",
        region="eu",
        zone="a",
        retry_body_bytes=2 << 20,
        access_log=tmp_path / "run" / "log.json",
        threads=2,
        connections_max=100,
        drain_s=120.0,
        notice_s=0.0,
        tls=settings.tls,
    )
    assert settings.tls is not None
    assert settings.tls.key == tmp_path / "tls.key"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("nodes = []", "there are no nodes"),
        ('nodes = ["10.0.0.1"]', "'10.0.0.1' is not an address: host and port"),
        ('nodes = ["10.0.0.1:0"]', "name its port"),
        ('nodes = ["a:1", "a:1"]', "named twice"),
        ('nodes = [{ address = "a:1", rack = "b" }]', "unknown field `rack`"),
        ('listen = "9000"', "'9000' is not an address"),
        ('listen = "a b:9000"', "is not an address"),
        ('listen = "0.0.0.0:70000"', "is not an address"),
        ('secret = "short"', "16 to 128 letters"),
        ('secret = "percent%20percent%20"', "16 to 128 letters"),
        ('region = "a/b"', "region: 'a/b' is not a label"),
        ('retry_body = "1 GiB"', "is not a size"),
        ('retry_body = "65 MiB"', "at most 64 MiB"),
        ('drain = "soon"', "drain: 'soon' is not a time"),
        ("threads = -1", "threads: -1"),
        ("connections = 0", "connections: 0"),
        ("lissten = 1", "unknown field `lissten`"),
        ("listen = 1", "Expected `str`, got `int`"),
        ("tls = 1", "Expected `object | null`"),
        ("[tls]", "missing required field `certificate`"),
        ("listen", "not TOML"),
    ],
)
def test_what_is_wrong_is_told_in_one_sentence(tmp_path: Path, line: str, said: str) -> None:
    text = line if line.startswith("nodes") else f'nodes = ["10.0.0.1:9000"]\n{line}'
    with pytest.raises(InvalidInput) as caught:
        read(tmp_path, text + "\n")
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 'balance.toml'}: ")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="There is no configuration file"):
        load_settings(tmp_path / "balance.toml")


def test_envoy_takes_all_of_it(tmp_path: Path) -> None:
    """As it will be asked to, with everything that there is, and with nothing that need not be."""
    for number, text in enumerate((FULL, 'nodes = ["10.0.0.1:9000"]')):
        settings = read(tmp_path, text)
        home = tmp_path / str(number)
        home.mkdir()
        files = bootstrap.Files(home)
        files.endpoints.write_text(
            json.dumps(plain(bootstrap.resources(nodes_cluster.endpoints(settings, settings.nodes))))
        )
        settings.directory.mkdir(exist_ok=True)
        files.certificate.write_text(json.dumps(plain(bootstrap.resources())))
        whole = plain(bootstrap.bootstrap(settings, files))
        assert set(whole.pop("dynamic_resources")) == {"lds_config", "cds_config"}
        parts = {
            "clusters": [plain(nodes_cluster.cluster(str(files.endpoints)))],
            "listeners": [plain(listener.listener(settings, str(files.certificate)))],
        }
        for found in parts.values():
            found[0].pop("@type")
        whole["static_resources"] = parts
        files.bootstrap.write_text(json.dumps(whole))
        done = subprocess.run(
            [find_envoy(), "--mode", "validate", "--config-path", files.bootstrap],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=home,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "deprecated" not in done.stderr.lower(), done.stderr


def test_what_is_kept_and_sent_again(tmp_path: Path) -> None:
    settings = read(tmp_path, FULL)
    *again, rest = routes_of(settings)
    assert rest["match"] == {"prefix": "/"}
    assert rest["route"]["retry_policy"]["retry_on"] == "connect-failure,refused-stream"
    for route in again:
        (method, *headers) = route["match"]["headers"]
        assert route["route"]["hedge_policy"] == {"hedge_on_per_try_timeout": True}
        if method["string_match"]["safe_regex"]["regex"] == "PUT|POST":
            assert headers[0]["range_match"] == {"start": 0, "end": (2 << 20) + 1}
            assert route["request_body_buffer_limit"] == 2 << 20
            assert headers[1] == {
                "name": "x-amz-copy-source",
                "present_match": True,
                "invert_match": True,
            }
    without = read(tmp_path, 'nodes = ["10.0.0.1:9000"]')
    assert [route["match"].get("headers", [{}])[0].get("string_match") for route in routes_of(without)] == [
        {"safe_regex": {"regex": "GET|HEAD"}},
        None,
    ]


def test_the_secret_is_where_it_must_be_and_nowhere_else(tmp_path: Path) -> None:
    settings = read(tmp_path, FULL)
    files = bootstrap.Files(tmp_path)
    said = msgspec.json.encode(listener.listener(settings, ""))
    assert said.count(b"abcdefghijklmnop") == 1
    for other in (
        nodes_cluster.cluster("x"),
        nodes_cluster.endpoints(settings, settings.nodes),
        bootstrap.bootstrap(settings, files),
    ):
        assert b"abcdefghijklmnop" not in msgspec.json.encode(other)


PLACES = st.sampled_from(["", "eu", "us"])
ENDPOINTS = st.builds(
    Endpoint,
    host=st.sampled_from(["10.0.0.1", "10.0.0.2", "10.0.0.3"]),
    port=st.integers(9000, 9003),
    name=st.sampled_from(["", "one", "two"]),
    region=PLACES,
    zone=PLACES,
    draining=st.booleans(),
)


@given(st.lists(ENDPOINTS), PLACES, PLACES)
def test_every_node_is_told_once_and_the_nearest_first(found: list[Endpoint], region: str, zone: str) -> None:
    view = view_of(found)
    assert view == view_of(reversed(found)), "whatever order they came in"
    settings = Settings(
        listen_host="127.0.0.1", listen_port=0, nodes=view, directory=Path("run"), region=region, zone=zone
    )
    told = plain(nodes_cluster.endpoints(settings, view))["endpoints"]
    addresses: list[tuple[str, int]] = []
    for locality in told:
        where = locality["locality"]
        for member in locality["lb_endpoints"]:
            address = member["endpoint"]["address"]["socket_address"]
            addresses.append((address["address"], address["port_value"]))
            (endpoint,) = (one for one in view if (one.host, one.port) == addresses[-1])
            assert (where["region"], where["zone"]) == (endpoint.region, endpoint.zone)
            assert (member["health_status"] == "DRAINING") == endpoint.draining
    assert sorted(addresses) == sorted({(one.host, one.port) for one in found})
    priorities = [locality["priority"] for locality in told]
    # Envoy wants them without gaps.
    assert sorted(set(priorities)) == list(range(len(set(priorities))))
    if region:
        near = [one["priority"] for one in told if one["locality"]["region"] == region]
        far = [one["priority"] for one in told if one["locality"]["region"] != region]
        assert not near or not far or max(near) < min(far)
    else:
        assert set(priorities) <= {0}


def test_no_node_at_all_can_be_told() -> None:
    nobody: View = ()
    settings = Settings(listen_host="127.0.0.1", listen_port=0, nodes=nobody, directory=Path("run"))
    assert plain(nodes_cluster.endpoints(settings, nobody))["endpoints"] == []


@pytest.mark.parametrize(
    ("text", "found"),
    [("a:1", ("a", 1)), ("[::1]:9000", ("::1", 9000)), ("n-1.example.org:65535", ("n-1.example.org", 65535))],
)
def test_addresses(text: str, found: tuple[str, int]) -> None:
    assert split_address(text) == found
