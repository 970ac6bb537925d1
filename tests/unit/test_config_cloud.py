"""What may be said of a bucket, and what is said when it is wrong."""

from pathlib import Path

import pytest

from holdfast.base.clock import SystemClock
from holdfast.base.errors import InvalidInput
from holdfast.node.bucket_report import cost_of
from holdfast.node.cluster import Cluster, Slot, read_cluster, write_cluster
from holdfast.node.config import make_config
from holdfast.node.config_cloud import Bucket, Price, lines_of, read_money
from holdfast.node.config_file import read_config_file
from holdfast.stores.cloud import CloudAddress, Requests
from holdfast.stores.cloud.profiles import Profile

WHOLE = """
[[store]]
slot = "far"
bucket = "s3://name/a/prefix"
endpoint = "http://127.0.0.1:9"
bucket_region = "eu-west-1"
profile = "backup"
capacity = 1099511627777
sealed = false
price = { storage = 0.023, puts = 0.005, gets = 0.0004, egress = 0.09 }
"""
TWO = WHOLE + '[[store]]\npath = "d1"\n'


def read(text: str) -> Bucket:
    config = make_config([read_config_file(Path("/etc/holdfast.toml"), text)], Path("/"))
    path = config.stores[0].path
    assert isinstance(path, Bucket)
    return path


def test_all_that_can_be_said_is_heard_and_can_be_written_again() -> None:
    bucket = read(TWO)
    assert bucket == Bucket(
        CloudAddress("name", "a/prefix"),
        "http://127.0.0.1:9",
        "eu-west-1",
        "backup",
        False,
        1099511627777,
        Price(0.023, 0.005, 0.0004, 0.09),
    )
    again = "[[store]]\n" + "\n".join(lines_of(bucket)) + '\n[[store]]\npath = "d1"\n'
    assert read(again) == bucket


def test_a_bucket_is_sealed_and_on_no_host_of_ours_unless_something_else_is_said() -> None:
    config = make_config(
        [read_config_file(Path("/x"), '[[store]]\nbucket = "s3://cold"\n[[store]]\npath = "d"\n')], Path("/")
    )
    place = config.stores[0]
    assert isinstance(place.path, Bucket)
    assert place.path.sealed
    assert place.host == "cold"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('bucket = "gs://name"', "s3://"),
        ('bucket = "s3://id:secret@name"', "name of a bucket"),
        ('endpoint = "http://id:secret@host"', "no address of a server"),
        ('capacity = "1 MiB"', "too little"),
        ("price = { rent = 1 }", "rent"),
        ("price = { puts = -1 }", "not a price"),
        ('path = "/mnt"', "there is no 'path'"),
        ("sealed = 1", "not yes or no"),
    ],
)
def test_what_is_wrong_is_refused_without_repeating_a_secret(line: str, said: str) -> None:
    first = "" if line.startswith("bucket") else 'bucket = "s3://name"\n'
    with pytest.raises(InvalidInput, match=said) as caught:
        read(f"[[store]]\n{first}{line}\n")
    assert "secret" not in str(caught.value)


def test_one_bucket_is_not_in_another_but_may_be_elsewhere() -> None:
    for second, fine in (("s3://name/a", False), ("s3://name", False), ("s3://name/ab", True)):
        text = f'[[store]]\nbucket = "s3://name/a"\n[[store]]\nbucket = "{second}"\n'
        if fine:
            read(text)
        else:
            with pytest.raises(InvalidInput):
                read(text)
    read('[[store]]\nbucket = "s3://name"\n[[store]]\nbucket = "s3://name"\nendpoint = "http://h"\n')


def test_what_commands_added_is_on_record_and_older_records_open(tmp_path: Path) -> None:
    bucket = read(TWO)
    slot = Slot(str(bucket), bucket=bucket)
    write_cluster(tmp_path, Cluster("c", {"far": slot, "disk1": Slot("/d1")}))
    found = read_cluster(tmp_path)
    assert found is not None
    assert found.slots["far"].where == bucket
    assert found.slots["disk1"].where == Path("/d1")
    (tmp_path / "cluster.json").write_text('{"cluster":"c","slots":{"disk1":{"path":"/d1"}}}')
    old = read_cluster(tmp_path)
    assert old is not None
    assert old.slots["disk1"].where == Path("/d1")


def test_what_it_costs() -> None:
    price = read_money("0.023,0.005,0.0004,0.09")
    asked = Requests(puts=2000, gets=5000, deletes=9, bytes_in=7, bytes_out=2_000_000_000)
    assert cost_of(asked, price) == pytest.approx(0.01 + 0.002 + 0.18)
    with pytest.raises(InvalidInput):
        read_money("cheap")


def test_a_profile_is_read_and_never_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    with pytest.raises(InvalidInput, match="cannot be read"):
        Profile("backup", SystemClock())
    file.write_text("[backup]\naws_access_key_id = ID\n")
    with pytest.raises(InvalidInput, match="not both"):
        Profile("backup", SystemClock())
    file.write_text("[backup\nthe-secret\n")
    with pytest.raises(InvalidInput) as caught:
        Profile("backup", SystemClock())
    assert "the-secret" not in str(caught.value)
    file.write_text("[backup]\naws_access_key_id = ID\naws_secret_access_key = the-secret\n")
    profile = Profile("backup", SystemClock())
    assert "the-secret" not in repr(profile)
    assert profile()["secret_access_key"] == "the-secret"
    file.write_text("[backup]\naws_access_key_id = ID\naws_secret_access_key = another\n")
    assert profile()["secret_access_key"] == "another", "who renews them need not start anything anew"
