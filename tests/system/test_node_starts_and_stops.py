"""A real node as a person starts it: what it prints, how it stops, and what it refuses in one sentence."""

import http.client
import json
import os
import pty
import shutil
import signal
import socket
import stat
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.kit.process import PROGRAM, NodeProcess, clean_environment, die_with_parent, run_holdfast


def refusal(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The one sentence of a command that was refused with `code`."""
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    sentences = [line for line in done.stderr.splitlines() if line.startswith("holdfast: ")]
    assert len(sentences) == 1, done.stderr
    return sentences[0]


def snapshot(folder: Path) -> dict[str, int]:
    """Every path below `folder`, and when it was last changed."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


def get(node: NodeProcess, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(urlsplit(node.endpoint).netloc, timeout=60)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_it_prints_what_is_needed_and_stops_on_ctrl_c(tmp_path: Path) -> None:
    with NodeProcess(tmp_path) as node:
        credentials = node.credentials
        for expected in (
            node.endpoint,
            credentials.access_key_id,
            "holdfast credentials",
            "any 2 of 6 stores",
            "they are one disk",
        ):
            assert expected in node.output
        # What is not read by a person ends in a journal.
        assert credentials.secret_access_key not in node.output
        told = run_holdfast("credentials", cwd=tmp_path).stdout
        assert f"export AWS_SECRET_ACCESS_KEY={credentials.secret_access_key}\n" in told
        assert f"AWS_ENDPOINT_URL={node.endpoint}\n" in told
        assert get(node, "/-/live")[0] == 200
        assert get(node, "/-/ready") == (200, b'{"ready":true}')
        assert get(node, "/-/status")[0] == 403
        assert node.stop() == 0
        assert "Stopped." in node.output
    assert not (node.data / "node.json").exists()


def test_a_person_at_a_terminal_sees_what_can_be_pasted(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    node = subprocess.Popen(
        [PROGRAM, "serve", "--port", "0"],
        cwd=tmp_path,
        env=clean_environment({"TERM": "dumb"}),
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        preexec_fn=die_with_parent,
    )
    os.close(theirs)
    said = b""
    try:
        with os.fdopen(ours, "rb", buffering=0) as terminal:
            while b"Ctrl-C" not in said:
                said += terminal.read(4096)
            kept = json.loads((tmp_path / "holdfast-data" / "credentials.json").read_text())
            assert f"export AWS_SECRET_ACCESS_KEY={kept['secret_access_key']}" in said.decode()
            assert b"aws s3 mb s3://" in said
            node.send_signal(signal.SIGINT)
            assert node.wait(timeout=60) == 0
    finally:
        node.kill()
        node.wait()


def test_sigterm_stops_it_as_well(tmp_path: Path) -> None:
    with NodeProcess(tmp_path) as node:
        node.signal(signal.SIGTERM)
        assert node.wait() == 0


def test_credentials_are_kept_for_the_owner_and_stay(tmp_path: Path) -> None:
    with NodeProcess(tmp_path) as node:
        first = node.credentials
        assert node.stop() == 0
    mode = (node.data / "credentials.json").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600
    with NodeProcess(tmp_path) as node:
        assert node.credentials == first


def test_credentials_of_the_environment_are_used_and_not_shown(tmp_path: Path) -> None:
    given = {"HOLDFAST_ACCESS_KEY_ID": "somebody", "HOLDFAST_SECRET_ACCESS_KEY": "a secret of mine"}
    with NodeProcess(tmp_path, environment=given) as node:
        assert "a secret of mine" not in node.output
        node.s3().create_bucket(Bucket="first")
        assert node.holdfast("status").returncode == 0
        strange = run_holdfast(
            "status",
            cwd=tmp_path,
            environment={"HOLDFAST_ACCESS_KEY_ID": "other", "HOLDFAST_SECRET_ACCESS_KEY": "other secret"},
        )
        assert "does not know these credentials" in refusal(strange, 64)
    assert not (node.data / "credentials.json").exists()


def test_status_says_how_it_is_for_people_and_programs(tmp_path: Path) -> None:
    with NodeProcess(tmp_path) as node:
        shown = node.holdfast("status")
        assert shown.returncode == 0, shown.stderr
        assert "state: online" in shown.stdout
        assert "disk6" in shown.stdout
        status = json.loads(node.holdfast("status", "--json").stdout)
        assert status["state"] == "online"
        assert [store["slot"] for store in status["stores"]] == [f"disk{n}" for n in range(1, 7)]
        assert status["index"]["state"] == "serving"
        assert len(status["index"]["members"]) >= 5
        assert status["domains"]["device"] == 1
        assert status["survives"] == {"store": 2, "device": 0, "host": 0, "zone": 0, "region": 0}


def test_verify_reads_what_was_written(tmp_path: Path) -> None:
    with NodeProcess(tmp_path) as node:
        s3 = node.s3()
        s3.create_bucket(Bucket="first")
        for number in range(5):
            s3.put_object(Bucket="first", Key=str(number), Body=bytes([number]) * 50_000)
        found = json.loads(node.holdfast("verify", "--json").stdout)
        assert found["summary"]["packs"] >= 1
        assert found["summary"]["whole"] == found["summary"]["packs"]
        assert found["packs"] == []


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_holdfast("serve", "--port", str(port), cwd=tmp_path)
    assert str(port) in refusal(done, 64)
    assert "--port" in done.stderr


@pytest.mark.parametrize("mode", [0o500, 0o000])
def test_a_folder_that_cannot_be_written_to(tmp_path: Path, mode: int) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=mode)
    done = run_holdfast("serve", "--data", closed / "data", "--port", "0", cwd=tmp_path, privileged=False)
    assert str(closed) in refusal(done, 64)


def test_a_data_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run_holdfast("serve", "--data", tmp_path / "file", "--port", "0", cwd=tmp_path)
    assert str(tmp_path / "file") in refusal(done, 64)


def test_a_data_folder_whose_parent_is_not_there(tmp_path: Path) -> None:
    done = run_holdfast("serve", "--data", tmp_path / "mnt" / "data", "--port", "0", cwd=tmp_path)
    assert "Create the folder above it first" in refusal(done, 64)


def test_a_wrong_configuration(tmp_path: Path) -> None:
    (tmp_path / "holdfast.toml").write_text('scheme = "rs-4-2"\n\n[limits]\nmemroy = "1 GiB"\n')
    done = run_holdfast("serve", cwd=tmp_path)
    assert "holdfast.toml:4: there is no 'memroy' here: did you mean 'memory'?" in refusal(done, 64)
    assert not (tmp_path / "holdfast-data").exists()


def test_the_configuration_is_followed(tmp_path: Path) -> None:
    stores = "".join(f'[[store]]\nslot = "s{n}"\npath = "s{n}"\nhost = "h{n}"\n' for n in range(3))
    (tmp_path / "holdfast.toml").write_text(f'scheme = "mirror-2"\nregion = "us-east-1"\n{stores}')
    with NodeProcess(tmp_path) as node:
        assert "any 1 of 3 hosts" in node.output
        status = json.loads(node.holdfast("status", "--json").stdout)
        assert [store["slot"] for store in status["stores"]] == ["s0", "s1", "s2"]
        assert status["scheme"] == "mirror-2"
        node.s3().create_bucket(Bucket="first")
        stored = node.s3().put_object(Bucket="first", Key="a", Body=b"a")
        receipt = stored["ResponseMetadata"]["HTTPHeaders"]["x-holdfast-receipt"]
        assert receipt.startswith("scheme=mirror-2; durable=2/2")


def test_two_nodes_on_the_same_data(tmp_path: Path) -> None:
    with NodeProcess(tmp_path) as node:
        done = run_holdfast("serve", "--port", "0", cwd=tmp_path)
        assert f"process {node.pid}" in refusal(done, 75)
        node.s3().create_bucket(Bucket="still-serving")


def test_two_nodes_on_the_same_stores(tmp_path: Path) -> None:
    stores = [argument for n in range(3) for argument in ("--store", str(tmp_path / f"s{n}"))]
    with NodeProcess(tmp_path, *stores) as node:
        done = run_holdfast("serve", "--data", tmp_path / "other", "--port", "0", *stores, cwd=tmp_path)
        assert "in use" in refusal(done, 76)
        node.s3().create_bucket(Bucket="still-serving")


def test_a_store_of_another_cluster_is_refused_as_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    with NodeProcess(tmp_path / "theirs") as theirs:
        assert theirs.stop() == 0
    stores = ["--store", str(theirs.data / "disk1"), "--store", str(tmp_path / "s1")]
    with NodeProcess(tmp_path, "--store", str(tmp_path / "s0"), "--store", str(tmp_path / "s1")) as node:
        assert node.stop() == 0
    done = run_holdfast("serve", "--port", "0", *stores, cwd=tmp_path)
    assert "cluster" in refusal(done, 76)


def test_a_store_of_another_cluster_in_a_known_place_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    with NodeProcess(tmp_path / "theirs") as theirs:
        assert theirs.stop() == 0
    with NodeProcess(tmp_path) as node:
        node.s3().create_bucket(Bucket="first")
        node.s3().put_object(Bucket="first", Key="a", Body=b"a" * 100_000)
        assert node.stop() == 0
    shutil.rmtree(node.data / "disk2")
    shutil.copytree(theirs.data / "disk2", node.data / "disk2")
    before = snapshot(node.data / "disk2")
    with NodeProcess(tmp_path) as node:
        assert "disk2 is foreign" in node.output
        assert node.s3().get_object(Bucket="first", Key="a")["Body"].read() == b"a" * 100_000
        assert "belongs to cluster" in node.holdfast("status").stdout
        assert node.stop() == 0
    assert snapshot(node.data / "disk2") == before


def test_stores_that_are_missing_at_the_start(tmp_path: Path) -> None:
    with NodeProcess(tmp_path) as node:
        node.s3().create_bucket(Bucket="first")
        node.s3().put_object(Bucket="first", Key="a", Body=b"a" * 100_000)
        assert node.stop() == 0
    for slot in ("disk1", "disk4"):
        shutil.rmtree(node.data / slot)
    with NodeProcess(tmp_path) as node:
        assert "disk1 is missing" in node.output
        assert "disk4 is missing" in node.output
        s3 = node.s3()
        assert s3.get_object(Bucket="first", Key="a")["Body"].read() == b"a" * 100_000
        s3.put_object(Bucket="first", Key="b", Body=b"b" * 100_000)
        assert s3.get_object(Bucket="first", Key="b")["Body"].read() == b"b" * 100_000
        status = json.loads(node.holdfast("status", "--json").stdout)
        assert status["state"] == "degraded"
        assert status["survives"]["store"] == 0
        assert node.holdfast("verify").returncode == 1


def test_too_few_members_of_the_index_are_told_by_name(tmp_path: Path) -> None:
    with NodeProcess(tmp_path) as node:
        assert node.stop() == 0
    for number in range(1, 4):
        shutil.rmtree(node.data / f"disk{number}")
    done = run_holdfast("serve", "--port", "0", cwd=tmp_path)
    sentence = refusal(done, 69)
    assert "index" in sentence
    assert "disk1" in sentence


def test_version(tmp_path: Path) -> None:
    assert run_holdfast("version", cwd=tmp_path).stdout.startswith("holdfast 0.")
