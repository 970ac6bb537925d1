"""What the balancer does when nodes fail, lie or leave: real Envoys before servers that do as they are told.

No test here measures time: what is counted is who was asked what, and what the client got.
"""

import http.client
import os
import signal
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from holdfast.balance.admin import Admin
from holdfast.balance.bootstrap import Files
from holdfast.balance.nodes_cluster import CLUSTER, EJECT_AFTER, LEFT_OUT_S, READY_PATH
from holdfast.balance.settings import DIRECTORY_DEFAULT
from holdfast.base.clock import SystemClock
from holdfast.cli.main import run
from tests.kit.balancer import SECRET, BalancerProcess
from tests.kit.ports import free_ports
from tests.kit.process import run_holdfast, wait_until
from tests.kit.upstream import Asked, Told, Upstream

pytestmark = pytest.mark.slow

MIB = 1 << 20
EJECTIONS = f"cluster.{CLUSTER}.outlier_detection.ejections_enforced_total"


class Got(NamedTuple):
    """What a client got."""

    status: int
    body: bytes
    headers: Mapping[str, str]


def ask(
    port: int, method: str = "GET", target: str = "/b/k", body: bytes | None = None, **headers: str
) -> Got:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        with suppress(BrokenPipeError, ConnectionResetError):
            # An answer may come before all of a body is sent.
            connection.request(method, target, body=body, headers=named)
        answer = connection.getresponse()
        return Got(answer.status, answer.read(), dict(answer.getheaders()))
    finally:
        connection.close()


def shares(port: int, nodes: list[Upstream]) -> list[int]:
    """How many of eight reads each node gets: Envoy's threads learn of a change one after the other."""
    before = [len(node.requests) for node in nodes]
    assert all(ask(port).status == 200 for _ in range(8))
    return [len(node.requests) - earlier for node, earlier in zip(nodes, before, strict=True)]


class Rig:
    """Some upstreams behind one balancer."""

    def __init__(self, home: Path, stack: ExitStack, count: int = 2, lines: tuple[str, ...] = ()) -> None:
        self.nodes = [stack.enter_context(Upstream()) for _ in range(count)]
        self.balancer = stack.enter_context(
            BalancerProcess(home / "balancer", [node.address for node in self.nodes], lines)
        )
        self.port = self.balancer.port
        self.until({"ready"})

    def states(self) -> dict[str, str]:
        return {node["address"]: node["state"] for node in self.balancer.status()["nodes"]}

    def until(self, states: set[str]) -> None:
        """Wait until the nodes are in these states and no others."""
        wait_until(f"nodes to be {states}", lambda: set(self.states().values()) == states)

    def all_behave(self, told: Told) -> None:
        for node in self.nodes:
            node.behave = lambda _: told

    @property
    def requests(self) -> list[Asked]:
        return [asked for node in self.nodes for asked in node.requests]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as found:
        yield found


def once_then_well(how: Told, nodes: list[Upstream]) -> None:
    """Whichever node is asked first does `how`, and all is well afterwards."""
    seen: list[Asked] = []

    def behave(asked: Asked) -> Told:
        seen.append(asked)
        return how if len(seen) == 1 else Told(200, b"well")

    for node in nodes:
        node.behave = behave


def test_a_try_that_failed_is_made_again_elsewhere_under_the_same_id(
    tmp_path: Path, stack: ExitStack
) -> None:
    rig = Rig(tmp_path, stack)
    cases = [
        ("GET", None, Told(cut=True)),
        ("HEAD", None, Told(503)),
        ("PUT", b"x" * 70_000, Told(cut=True)),
        ("POST", b"<Delete/>", Told(502)),
        ("DELETE", None, Told(cut=True)),
        ("PUT", b"", Told(500)),
    ]
    for method, body, how in cases:
        for node in rig.nodes:
            node.asked.clear()
        once_then_well(how, rig.nodes)
        assert ask(rig.port, method, body=body).status == 200, method
        first, second = (node.requests for node in rig.nodes)
        assert [len(first), len(second)] == [1, 1], "each was asked once"
        ids = {asked.headers["holdfast-request"] for asked in rig.requests}
        assert len(ids) == 1
        assert {asked.headers["holdfast-balancer"] for asked in rig.requests} == {SECRET}
        assert sorted(asked.headers["x-envoy-attempt-count"] for asked in rig.requests) == ["1", "2"]
        assert {asked.body for asked in rig.requests} == {body or b""}


def test_what_cannot_be_kept_is_not_sent_again_once_a_node_has_seen_it(
    tmp_path: Path, stack: ExitStack
) -> None:
    rig = Rig(tmp_path, stack)
    for body, headers in (
        (b"x" * (2 * MIB), {}),
        (b"", {"x_amz_copy_source": "b/other"}),
    ):
        for node in rig.nodes:
            node.asked.clear()
        once_then_well(Told(503, b"<Error/>"), rig.nodes)
        assert ask(rig.port, "PUT", body=body, **headers).status == 503
        assert len(rig.requests) == 1


def test_a_node_that_is_gone_is_not_noticed(tmp_path: Path, stack: ExitStack) -> None:
    """Nobody listens there any more: whatever it is, and however large, it goes to the other one."""
    rig = Rig(tmp_path, stack)
    gone, left = rig.nodes
    gone.vanish()
    for method, body in (("GET", None), ("PUT", b"x" * (3 * MIB)), ("DELETE", None), ("POST", b"x")) * 3:
        assert ask(rig.port, method, body=body).status == 200
    assert len(left.requests) == 12
    wait_until("it to be seen", lambda: rig.states()[gone.address] == "not ready")


def test_without_any_node_clients_are_told_when_to_come_back(tmp_path: Path, stack: ExitStack) -> None:
    rig = Rig(tmp_path, stack)
    for node in rig.nodes:
        node.vanish()
    for method, body in (("PUT", b"x" * (3 * MIB)), ("GET", None), ("PUT", b"x"), ("DELETE", None)):
        got = ask(rig.port, method, body=body)
        assert got.status == 503, got
        assert b"<Code>ServiceUnavailable</Code>" in got.body
        assert got.headers["retry-after"] == "1"


def test_without_a_secret_no_write_is_sent_again(tmp_path: Path, stack: ExitStack) -> None:
    rig = Rig(tmp_path, stack, lines=('secret = ""',))
    once_then_well(Told(503), rig.nodes)
    assert ask(rig.port, "PUT", body=b"x", holdfast_balancer="forged", holdfast_request="f").status == 503
    (asked,) = rig.requests
    assert not [name for name in asked.headers if name.startswith("holdfast-")]


def test_ids_cannot_be_chosen_by_clients(tmp_path: Path, stack: ExitStack) -> None:
    rig = Rig(tmp_path, stack)
    for _ in range(2):
        ask(rig.port, holdfast_request="mine", holdfast_balancer="guess", x_request_id="kept")
    ids = [asked.headers["holdfast-request"] for asked in rig.requests]
    assert len(set(ids)) == 2
    assert all(len(one) == 36 for one in ids)
    assert {asked.headers["holdfast-balancer"] for asked in rig.requests} == {SECRET}
    assert {asked.headers["x-request-id"] for asked in rig.requests} == {"kept"}


def test_health_that_lies_well_fails_five_requests_at_most(tmp_path: Path, stack: ExitStack) -> None:
    """Drill 30, one way: it says that it is ready, and answers nothing right."""
    rig = Rig(tmp_path, stack, count=3)
    liar = rig.nodes[0]
    liar.behave = lambda _: Told(500, b"<Error/>")
    clock, envoy = SystemClock(), Admin(Files(rig.balancer.home / DIRECTORY_DEFAULT).admin)

    def checks() -> int:
        return sum(asked.target == READY_PATH for asked in liar.asked)

    while True:
        began, wrong, times = clock.monotonic(), len(liar.requests), envoy.number(EJECTIONS)
        while len(liar.requests) < wrong + EJECT_AFTER:
            # Copies are never sent again, so that each wrong answer shows.
            assert ask(rig.port, "PUT", "/b/k", x_amz_copy_source="b/k").status in (200, 500)
        wait_until("it to be left out", lambda times=times: envoy.number(EJECTIONS) > times)
        # That it says it is ready does not bring it back.
        until = checks() + 2
        wait_until("it to be checked", lambda until=until: checks() >= until, look_every_s=0.02)
        state = rig.states()[liar.address]
        if clock.monotonic() - began < LEFT_OUT_S:  # else the machine was busy, and it may be back
            assert state == "left out"
            break
    assert all(ask(rig.port).status == 200 for _ in range(10)), "reads never notice"


def test_what_clients_do_wrong_is_not_held_against_nodes(tmp_path: Path, stack: ExitStack) -> None:
    rig = Rig(tmp_path, stack)
    for told in (Told(501), Told(503, b"", (("Retry-After", "1"),)), Told(404), Told(403)):
        rig.all_behave(told)
        for _ in range(12):
            assert ask(rig.port, "PUT", x_amz_copy_source="b/k").status == told.status
    assert set(rig.states().values()) == {"ready"}


def test_health_that_lies_badly_stops_nobody(tmp_path: Path, stack: ExitStack) -> None:
    """Drill 30, the other way: none says that it is ready, all could serve."""
    rig = Rig(tmp_path, stack)
    for node in rig.nodes:
        node.ready = False
    rig.until({"not ready"})
    assert rig.balancer.status()["everybody_asked"]
    assert all(ask(rig.port).status == 200 for _ in range(10))
    rig.nodes[0].ready = True
    wait_until("one to be seen", lambda: rig.states()[rig.nodes[0].address] == "ready")
    wait_until("the other to be left in peace", lambda: shares(rig.port, rig.nodes) == [8, 0])


def test_the_nearest_are_asked_first(tmp_path: Path, stack: ExitStack) -> None:
    nodes = [stack.enter_context(Upstream()) for _ in range(3)]
    named = [
        f'{{ address = "{node.address}", region = "{region}", zone = "{zone}" }}'
        for node, region, zone in zip(nodes, ("eu", "eu", "us"), ("a", "b", "a"), strict=True)
    ]
    lines = ('region = "eu"', 'zone = "b"')
    balancer = stack.enter_context(BalancerProcess(tmp_path / "balancer", named, lines))
    ready = lambda: [node["state"] for node in balancer.status()["nodes"]].count("ready")  # noqa: E731
    for gone, first in ((None, 1), (1, 0), (0, 2)):
        if gone is not None:
            nodes[gone].ready = False
            wait_until("it to be seen", lambda first=first: ready() == (2 if first == 0 else 1))
        expected = [8 if n == first else 0 for n in range(3)]
        wait_until("the nearest to get all", lambda e=expected: shares(balancer.port, nodes) == e)


def test_nothing_is_changed_on_the_way(tmp_path: Path, stack: ExitStack) -> None:
    rig = Rig(tmp_path, stack, count=1)
    (node,) = rig.nodes
    node.behave = lambda _: Told(
        200, b"", (("ETag", '"x"'), ("x-amz-meta-Und", "größe"), ("Server", "Holdfast"))
    )
    for target in (
        "/b/a//b", "//b//", "/b/%2F", "/b/%2f%2F", "/b/../c", "/b/./c/..", "/b/a%20b+c", "/b/%C3%BC?x=%2F&y",
        "/b/a\\b", "/b/a;b=c", "/b/?delete", "/b/k?versionId=..%2F..", "/b/%E0%A4%A?=", "/b/a:b@c!$&'()*,",
    ):  # fmt: skip
        with socket.create_connection(("127.0.0.1", rig.port), timeout=60) as client:
            client.sendall(
                f"PUT {target} HTTP/1.1\r\nHost: Bucket.S3.example.org:8080\r\nX-Amz-Meta-Und: größe\r\n"
                "Content-Length: 3\r\nContent-Encoding: aws-chunked\r\nx-amz-Date: a  b\r\n"
                "X-Forwarded-Proto: gopher\r\nConnection: close\r\n\r\nabc".encode("latin-1")
            )
            answer = b"".join(iter(lambda: client.recv(65536), b"")).decode("latin-1")
        assert answer.startswith("HTTP/1.1 200"), (target, answer)
        asked = node.requests[-1]
        for line in ('ETag: "x"', "x-amz-meta-Und: größe", "Server: Holdfast"):
            assert line in answer
        assert asked.target == target
        assert asked.body == b"abc"
        for line in (
            "Host: Bucket.S3.example.org:8080",
            "X-Amz-Meta-Und: größe",
            "Content-Encoding: aws-chunked",
            "x-amz-Date: a  b",
        ):
            assert line in asked.lines
        assert not [line for line in asked.lines if line.lower().startswith("x-envoy-expected")]


def test_bodies_stream_both_ways_and_are_not_kept(tmp_path: Path, stack: ExitStack) -> None:
    """A body of unknown length, and one that a node refuses after its head."""
    rig = Rig(tmp_path, stack, count=1)
    connection = http.client.HTTPConnection("127.0.0.1", rig.port, timeout=60)
    pieces = [bytes([number]) * 100_000 for number in range(40)]
    connection.request("PUT", "/b/k", body=iter(pieces), encode_chunked=True)
    assert connection.getresponse().status == 200
    connection.close()
    assert rig.requests[0].body == b"".join(pieces)
    rig.all_behave(Told(200, b"y" * (8 * MIB)))
    assert ask(rig.port).body == b"y" * (8 * MIB)
    # A client that waits to be asked for its body is asked.
    with socket.create_connection(("127.0.0.1", rig.port), timeout=60) as client:
        client.sendall(b"PUT /b/k HTTP/1.1\r\nHost: b\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"abc")
        assert client.recv(20).startswith(b"HTTP/1.1 200")
    assert rig.requests[-1].body == b"abc"


def test_who_is_a_node_may_change(tmp_path: Path, stack: ExitStack) -> None:
    rig = Rig(tmp_path, stack)
    first, second = rig.nodes
    rig.balancer.know([second.address])
    wait_until("one to be forgotten", lambda: list(rig.states()) == [second.address])
    wait_until("it to get nothing", lambda: shares(rig.port, rig.nodes) == [0, 8])
    (rig.balancer.home / "balance.toml").write_text("nodes = 3\n")
    wait_until("it to be told", lambda: "All stays as it is" in rig.balancer.output)
    assert ask(rig.port).status == 200
    rig.balancer.know([first.address, "localhost:" + second.address.split(":")[1]])
    wait_until("both to be known", lambda: set(rig.states().values()) == {"ready"} and len(rig.states()) == 2)


def test_envoy_that_dies_is_started_again(tmp_path: Path, stack: ExitStack) -> None:
    # A port of its own: Envoy comes back to where clients look for it.
    (port,) = free_ports(1)
    node = stack.enter_context(Upstream())
    balancer = stack.enter_context(BalancerProcess(tmp_path / "balancer", [node.address], port=port))
    (envoy,) = balancer.envoys
    os.kill(envoy, signal.SIGKILL)

    def answers() -> bool:
        try:
            return ask(port).status == 200
        except OSError:
            return False

    wait_until("another", lambda: answers() and balancer.envoys != [envoy])
    assert "is started again" in balancer.output


def test_stopping_lets_requests_finish(tmp_path: Path, stack: ExitStack) -> None:
    rig = Rig(tmp_path, stack, count=1)
    assert ask(rig.port, target="/-/balancer").status == 200
    with socket.create_connection(("127.0.0.1", rig.port), timeout=60) as client:
        client.sendall(b"PUT /b/k HTTP/1.1\r\nHost: b\r\nContent-Length: 3000000\r\n\r\n" + b"x" * 1_000_000)
        # A body that came so far is being served: Envoy counts it.
        wait_until("it to be served", lambda: rig.balancer.status()["active"] == 1)
        process = rig.balancer._process
        assert process is not None
        process.send_signal(signal.SIGTERM)

        def closed() -> bool:
            try:
                ask(rig.port)
            except OSError:
                return True
            return False

        wait_until("no more connections to be taken", closed)
        assert process.poll() is None
        client.sendall(b"x" * 2_000_000)
        answer = client.recv(1000)
    assert answer.startswith(b"HTTP/1.1 200")
    assert rig.balancer._end() == 0


def test_certificates_are_taken_anew(tmp_path: Path, stack: ExitStack) -> None:
    files = [tmp_path / "tls.crt", tmp_path / "tls.key"]
    make_certificate(tmp_path, "first.example")
    lines = (f'[tls]\ncertificate = "{files[0]}"\nkey = "{files[1]}"',)
    node = stack.enter_context(Upstream())
    balancer = stack.enter_context(BalancerProcess(tmp_path / "balancer", [node.address], lines))
    assert shown(balancer.port) == ("first.example", "h2")
    files[1].write_text("no key")
    wait_until("it to be told", lambda: "The certificate stays as it is" in balancer.output)
    assert shown(balancer.port) == ("first.example", "h2")
    make_certificate(tmp_path, "second.example")
    wait_until("the other", lambda: shown(balancer.port) == ("second.example", "h2"))
    connection = http.client.HTTPSConnection("127.0.0.1", balancer.port, timeout=60, context=trusting())
    connection.request("GET", "/b/k")
    assert connection.getresponse().status == 200
    connection.close()


def make_certificate(where: Path, name: str) -> None:
    """One that signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (where / "tls.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (where / "tls.crt").write_bytes(made.public_bytes(pem))


def trusting() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def shown(port: int) -> tuple[str, str | None]:
    """The name in the certificate that is shown, and the protocol that is chosen."""
    context = trusting()
    context.set_alpn_protocols(["h2", "http/1.1"])
    with (
        socket.create_connection(("127.0.0.1", port), timeout=60) as plain,
        context.wrap_socket(plain, server_hostname="any.example") as wrapped,
    ):
        found = x509.load_der_x509_certificate(wrapped.getpeercert(binary_form=True) or b"")
        return found.subject.rfc4514_string().removeprefix("CN="), wrapped.selected_alpn_protocol()


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ('listen = "127.0.0.1:{taken}"', 64, "Cannot listen on 127.0.0.1, port {taken}"),
        ('listen = "example:1"', 64, "example is not an address"),
        ('access_log = "/nowhere/log"', 64, "there is no folder /nowhere"),
        ('[tls]\ncertificate = "a"\nkey = "b"', 64, "There is no "),
        ("nodes = 1", 64, "Expected `array`"),
    ],
)
def test_what_is_wrong_at_the_start_is_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    line: str,
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        nodes = "" if line.startswith("nodes") else 'nodes = ["127.0.0.1:1"]\n'
        (tmp_path / "balance.toml").write_text(nodes + line.replace("{taken}", port) + "\n")
        assert run(["balance"]) == code
    told = capsys.readouterr().err
    assert told.startswith("holdfast: ")
    assert said.replace("{taken}", port) in told
    assert told.count("\n") == 1
    assert not (tmp_path / "holdfast-balance").exists(), "nothing was made"


def test_one_folder_is_for_one_balancer(tmp_path: Path, stack: ExitStack) -> None:
    rig = Rig(tmp_path, stack, count=1)
    done = run_holdfast("balance", cwd=rig.balancer.home)
    assert done.returncode == 75
    assert "Another balancer runs in" in done.stderr
    told = run_holdfast("balance", "status", cwd=rig.balancer.home).stdout
    assert f"{rig.nodes[0].address}  ready" in told
    assert ask(rig.port).status == 200
    rig.balancer.stop()
    done = run_holdfast("balance", "status", "--config", rig.balancer.home / "balance.toml", cwd=tmp_path)
    assert done.returncode == 69
    assert "No balancer runs in" in done.stderr
