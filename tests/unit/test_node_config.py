"""Configuration: defaults that work, later sources win, and what is wrong is named with its line."""

import platform
from pathlib import Path

import pytest

from holdfast.base.errors import InvalidInput
from holdfast.node.config import (
    Config,
    Given,
    Limits,
    StorePlace,
    credentials_given,
    make_config,
    read_size,
)
from holdfast.node.config_cluster import (
    ClusterSettings,
    Engine,
    IndexAddress,
    PeerAddress,
    fit_name,
    read_secrets,
)
from holdfast.node.config_file import read_config_file
from holdfast.scheme import Scheme
from holdfast.stores.peer.tls import TlsFiles

HERE = Path("/srv/here")
FILE = Path("/etc/holdfast/holdfast.toml")


def from_file(text: str) -> Config:
    return make_config([read_config_file(FILE, text)], HERE)


def refusal(text: str) -> str:
    with pytest.raises(InvalidInput) as caught:
        from_file(text)
    return str(caught.value)


def test_nothing_said_is_six_directories_rs_4_2_on_localhost() -> None:
    config = make_config([], HERE)
    assert config.data == HERE / "holdfast-data"
    assert [store.slot for store in config.stores] == [f"disk{number}" for number in range(1, 7)]
    assert config.stores[5].path == HERE / "holdfast-data" / "disk6"
    assert config.scheme == Scheme(4, 2)
    assert (config.host, config.port, config.region) == ("127.0.0.1", 9000, "us-east-1")


def test_the_command_line_wins_over_the_file() -> None:
    file = read_config_file(FILE, 'port = 9001\nregion = "eu-1"\n')
    config = make_config([file, Given(port=9002)], HERE)
    assert (config.port, config.region) == (9002, "eu-1")


def test_a_full_file_is_understood() -> None:
    config = from_file(
        """
        data = "data"
        scheme = "mirror-3"
        index_dirs = ["/mnt/a", "/mnt/b", "../c"]
        host = "0.0.0.0"
        domain = "s3.example.org"

        [limits]
        memory = "128 MiB"
        requests = 99
        reserve = 0

        [metrics]
        open = true

        [ledger]
        canary = false

        [[store]]
        path = "/mnt/one"
        slot = "one"
        zone = "a"

        [[store]]
        path = "/mnt/two"
        host = "h2"

        [[store]]
        path = "~/three"
        region = "eu"
        """
    )
    assert config.data == FILE.parent / "data"
    assert config.index_dirs == (Path("/mnt/a"), Path("/mnt/b"), Path("/etc/c"))
    assert config.scheme == Scheme(1, 2)
    assert config.limits == Limits(memory_bytes=128 << 20, requests_max=99, reserve_bytes=0)
    assert (config.metrics_open, config.canary) == (True, False)
    assert config.stores[0] == StorePlace(path=Path("/mnt/one"), slot="one", zone="a")
    assert config.stores[1].host == "h2"
    assert config.stores[2].path == Path.home() / "three"


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("port = 9000\nhost = 127.0.0.1\n", 2, "not TOML"),
        ('host = "unclosed\n', 1, "not TOML"),
        ("\n\nprot = 9000\n", 3, "did you mean 'port'?"),
        ("zebra = 1\n", 1, "known are data, scheme"),
        ("[limits]\nmemroy = 1\n", 2, "did you mean 'memory'?"),
        ('[limits]\nmemory = "lots"\n', 2, 'bytes, or text as "256 MiB"'),
        ('[limits]\nmemory = "1 MiB"\n', 2, "at least"),
        ("[limits]\nrequests = 0\n", 2, "from 1 to"),
        ("port = 70000\n", 1, "from 0 (any free one) to 65535"),
        ('port = "9000"\n', 1, "a whole number"),
        ("port = true\n", 1, "a whole number"),
        ("limits = 3\n", 1, "write [limits]"),
        ('[metrics]\nopen = "yes"\n', 2, "write true or false"),
        ("[ledger]\ncanaries = true\n", 2, "did you mean 'canary'?"),
        ('store = "/mnt/a"\n', 1, "write [[store]]"),
        ('[[store]]\npath = "/a"\n\n[[store]]\nzone = "a"\n', 4, "has no path"),
        ('[[store]]\npath = "/a"\n[[store]]\npath = "/b"\nslot = "Disk 2"\n', 5, "lower-case letters"),
        ('[[store]]\npath = "/a"\nzone = ""\n', 3, "is not a label"),
        ("index_dirs = []\n", 1, "not a list of paths"),
        ('index_dirs = ["/a", "/b"]\n', 1, "odd number"),
        ('\nindex_dirs = ["/a", "/b", "/a"]\n', 2, "named twice"),
        ('port = 1\nscheme = "rs-4-9"\n', 2, "takes K from 2 to 16 and M from 1 to 6"),
        ('scheme = "raid7"\n', 1, "is not a scheme"),
        ("scheme = 3\n", 1, "in quotes"),
        ('scheme = "mirror-3"\n[[store]]\npath = "/a"\n[[store]]\npath = "/b"\n', 1, "--scheme mirror-2"),
        ('[[store]]\npath = "/a"\n[[store]]\npath = "/a"\n', 4, "name another"),
        ('[[store]]\nslot="s"\npath="/a"\n[[store]]\npath="/b"\nslot="s"\n', 6, "name another"),
        ('domain = "S3!"\n', 1, "is not a domain"),
        ('"host" = 3\n', 1, "is not a host"),
    ],
)
def test_a_wrong_file_is_refused_with_file_line_and_what_is_right(text: str, line: int, says: str) -> None:
    said = refusal(text)
    assert said.startswith(f"{FILE}:{line}: ")
    assert says in said


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (Given(stores=(StorePlace(Path("/a")),)), "--scheme raid0"),
        (Given(stores=(StorePlace(Path("/a")), StorePlace(Path("/x/../a")))), "named twice"),
        (Given(stores=(StorePlace(Path("/a"), "s"), StorePlace(Path("/b"), "s"))), "slot 's' is named twice"),
        (Given(scheme="rs-8-3"), "needs 11 stores, there are 6"),
        (Given(scheme="raid7"), "is not a scheme"),
        (Given(index_dirs=(Path("/a"), Path("/b"))), "odd number"),
        (Given(index_dirs=tuple(Path(f"/{n}") for n in range(7))), "at most 5"),
    ],
)
def test_what_does_not_fit_together_is_refused(given: Given, says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        make_config([given], HERE)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("stores", "scheme"), [(2, "mirror-2"), (3, "mirror-3"), (4, "rs-2-2"), (5, "rs-3-2"), (9, "rs-4-2")]
)
def test_the_default_scheme_fits_the_stores(stores: int, scheme: str) -> None:
    places = tuple(StorePlace(Path(f"/mnt/{number}")) for number in range(stores))
    assert make_config([Given(stores=places)], HERE).scheme.name == scheme


def test_one_store_is_taken_when_asked_for_by_name() -> None:
    config = make_config([Given(stores=(StorePlace(Path("/a")),), scheme="raid0")], HERE)
    assert config.scheme == Scheme(1, 0)


@pytest.mark.parametrize(
    ("value", "size"), [(0, 0), (77, 77), ("5", 5), ("1 KiB", 1024), ("2GiB", 2 << 30), ("3 B", 3)]
)
def test_sizes_are_numbers_or_text_with_units(value: object, size: int) -> None:
    assert read_size(value) == size


@pytest.mark.parametrize("value", [-1, "1 MB", "MiB", "1.5 GiB", None, True, [1]])
def test_other_sizes_are_refused(value: object) -> None:
    with pytest.raises(InvalidInput):
        read_size(value)


def test_credentials_of_the_environment_come_in_pairs() -> None:
    key, secret = "HOLDFAST_ACCESS_KEY_ID", "HOLDFAST_SECRET_ACCESS_KEY"
    assert credentials_given({}) is None
    assert credentials_given({key: "me.you", secret: "12345678"}) == ("me.you", "12345678")
    for environment in (
        {key: "me"},
        {secret: "12345678"},
        {key: "me!", secret: "12345678"},
        {key: "mee", secret: "short"},
        {key: "mee", secret: "12345678\n"},
    ):
        with pytest.raises(InvalidInput):
            credentials_given(environment)


SHARED = 'index = "etcd://h1,h2:2380,h3"\n'
CLUSTER = '[cluster]\nsecret_file = "secret"\n'


def test_a_file_may_make_a_node_of_a_cluster() -> None:
    config = from_file(
        """
        name = "n1"
        index = "postgres://me:word@h1,h2:5433/db"
        index_managed = true
        [cluster]
        secret_file = "secret"
        peer = "0.0.0.0:9101"
        advertise = "[fe80::1]:9101"
        client = "https://s3-1.example.org:443"
        tls_certificate = "node.pem"
        tls_key = "node.key"
        tls_authority = "/ca.pem"
        [[store]]
        path = "/mnt/one"
        [[store]]
        path = "/mnt/two"
        host = "shelf"
        """
    )
    here = FILE.parent
    assert (config.name, config.index_managed) == ("n1", True)
    assert config.index == IndexAddress(Engine.POSTGRES, "postgres://me:word@h1,h2:5433/db")
    assert config.index.shown == "postgres://me@h1,h2:5433/db"
    assert "word" not in repr(config.index)
    assert config.cluster == ClusterSettings(
        secret_file=here / "secret",
        peer=PeerAddress("0.0.0.0", 9101),
        advertise=PeerAddress("[fe80::1]", 9101),
        client="https://s3-1.example.org:443",
        tls=TlsFiles(authority=Path("/ca.pem"), certificate=here / "node.pem", key=here / "node.key"),
    )
    # What one node has says nothing about what all have.
    assert (config.scheme, config.scheme_given) == (Scheme(4, 2), False)
    assert [store.host for store in config.stores] == ["n1", "shelf"]


def test_a_scheme_may_need_more_stores_than_one_node_of_a_cluster_has() -> None:
    config = from_file(SHARED + 'scheme = "rs-8-3"\n' + CLUSTER + '[[store]]\npath = "/mnt/one"\n')
    assert (config.scheme, config.scheme_given) == (Scheme(8, 3), True)
    assert config.index == IndexAddress(Engine.ETCD, "etcd://h1:2379,h2:2380,h3:2379")


def test_a_node_is_called_like_its_host_unless_it_has_a_name() -> None:
    assert fit_name("Rack-3_Server.example.org") == "rack-3-server"
    assert fit_name("...") == "node"
    assert len(fit_name("a" * 99)) == 63
    assert make_config([], HERE).name == fit_name(platform.node())
    assert make_config([Given(name="n7")], HERE).name == "n7"


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ('name = "N 1"\n', 1, "lower-case letters"),
        ('index = "mysql://h/db"\n', 1, "etcd://host1:2379"),
        ('index = "postgres://h"\n', 1, "postgres://user@host/database"),
        ('index = "etcd://h:99999"\n', 1, "is not an address"),
        ('index = "etcd://h,h:2379"\n', 1, "named twice"),
        ('index = "etcd://h/path/deeper"\n', 1, "not the address of an index"),
        ("port = 1\n" + SHARED, 2, "add [cluster] with secret_file"),
        ("port = 1\n" + CLUSTER, 2, "take [cluster] out"),
        (SHARED + '[cluster]\npeer = "h:1"\n', 2, "add secret_file"),
        (SHARED + CLUSTER + 'pear = "h:1"\n', 4, "did you mean 'peer'?"),
        (SHARED + CLUSTER + 'peer = "9100"\n', 4, 'as "10.0.0.1:9100"'),
        (SHARED + CLUSTER + 'advertise = "0.0.0.0:9100"\n', 4, "no address to connect to"),
        (SHARED + CLUSTER + 'client = "10.0.0.1:9000"\n', 4, 'as "http://10.0.0.1:9000"'),
        (SHARED + CLUSTER + 'tls_key = "k"\n', 2, "add tls_certificate"),
        (SHARED + CLUSTER + '[etcd]\nkey = "k"\n', 4, "certificate and key go together"),
        (SHARED + CLUSTER + '[etcd]\nkey = "k"\ncertificate = "c"\n', 4, "whom to believe"),
        (SHARED + CLUSTER + '[etcd]\nquota = "2 KiB"\n', 5, 'as "8 GiB"'),
        (SHARED + CLUSTER + '[etcd]\nauthorty = "a"\n', 5, "did you mean 'authority'?"),
        (SHARED + 'scheme = "raid6"\n' + CLUSTER, 2, "say it as rs-4-2"),
        (SHARED + 'scheme = "rs-1-1"\n' + CLUSTER, 2, "takes K from 2"),
        (SHARED + 'index_dirs = ["/a"]\n' + CLUSTER, 2, "take them out"),
        (SHARED + 'index_managed = "yes"\n' + CLUSTER, 2, "write true or false"),
    ],
)
def test_what_is_wrong_about_a_cluster_is_refused(text: str, line: int, says: str) -> None:
    said = refusal(text)
    assert said.startswith(f"{FILE}:{line}: ")
    assert says in said


@pytest.mark.parametrize(
    ("content", "mode", "says"),
    [(None, 0o600, "no file"), (b"s" * 32, 0o640, "chmod 600"), (b"short\n", 0o600, "has 5 bytes")],
)
def test_a_secret_that_is_none_is_refused(
    tmp_path: Path, content: bytes | None, mode: int, says: str
) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
        path.chmod(mode)
    with pytest.raises(InvalidInput) as caught:
        read_secrets(path)
    assert says in str(caught.value)
    assert "ssss" not in str(caught.value)


def test_a_secret_is_what_is_in_its_file(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"s" * 44 + b"\n")
    path.chmod(0o600)
    assert read_secrets(path) == (b"s" * 44,)
