"""Events of a real node: listed, followed, kept over a restart, told to a webhook."""

import hmac
import json
import subprocess
from pathlib import Path

import pytest

from holdfast.health.webhook import SIGNATURE_HEADER
from tests.kit.process import (
    PROGRAM,
    NodeProcess,
    clean_environment,
    delete_store,
    die_with_parent,
    run_holdfast,
    wait_until,
)
from tests.kit.receiver import Receiver

SECRET = "a secret of twenty letters"


def listed(node: NodeProcess, *arguments: str) -> list[dict[str, object]]:
    done = node.holdfast("events", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_a_disk_that_goes_and_comes_is_told_listed_followed_and_remembered(tmp_path: Path) -> None:
    with Receiver() as receiver, NodeProcess(tmp_path) as node:
        node.stop()
        (tmp_path / "holdfast.toml").write_text(
            f'[events]\nwebhook = "http://127.0.0.1:{receiver.port}/hook"\nsecret = "{SECRET}"\n'
            'kinds = ["store"]\n'
        )
        node.start()
        follow = subprocess.Popen(
            [PROGRAM, "events", "--follow", "--json", "--limit", "1"],
            cwd=tmp_path,
            env=clean_environment(),
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=die_with_parent,
        )
        assert follow.stdout is not None
        try:
            # It has begun to follow when it has shown the last one; what happens from now on it shows, too.
            followed: list[dict[str, object]] = [json.loads(follow.stdout.readline())]
            delete_store(node.data / "disk3")

            def gone() -> bool:
                return any(one["after"] == "missing" for one in listed(node, "--since", "1h"))

            wait_until("the events to name it", gone)
            (node.data / "disk3").mkdir()
            while not any(one["after"] == "new and empty" for one in followed):
                followed.append(json.loads(follow.stdout.readline()))
        finally:
            follow.kill()
            follow.wait()
            follow.stdout.close()
        numbers = [one["number"] for one in followed]
        assert numbers == sorted(set(numbers)), "nothing is left out or comes twice"
        missing = next(one for one in listed(node, "--limit", "500") if one["after"] == "missing")
        assert (missing["kind"], missing["subject"], missing["before"]) == ("store", "disk3", "ready")
        assert missing["observer"]
        assert str(node.data / "disk3") in str(missing["evidence"])

        def told() -> list[str]:
            return [event.after for batch in receiver.batches for event in batch.events]

        wait_until("the webhook to be told", lambda: "missing" in told() and "new and empty" in told())
        headers, body = receiver.posts[0]
        expected = hmac.new(SECRET.encode(), body, "sha256").hexdigest()
        assert headers[SIGNATURE_HEADER] == f"sha256={expected}"
        assert {event.kind for batch in receiver.batches for event in batch.events} == {"store"}

        receiver.answers = 500
        delete_store(node.data / "disk4")
        wait_until(
            "status to say that telling fails", lambda: "could not be told" in str(node.status().sentences)
        )
        assert node.stop() == 0
        receiver.answers = 200
        before = len(receiver.posts)
        node.start()
        wait_until("what was owed to be told", lambda: len(receiver.posts) > before)
        lines = node.holdfast("events", "--limit", "500").stdout.splitlines()
        assert any("store disk3 is missing: " in line for line in lines), "it is remembered over a restart"
        assert any("disk3" in event.text for event in node.status().events)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('webhook = "ftp://example.org/x"', "holdfast.toml:2: webhook: This is not the address of a webhook"),
        ('webhook = "https://example.org/x"\nkinds = ["disks"]', "holdfast.toml:3: kinds: "),
        ('kinds = ["store"]', "holdfast.toml:1: events go nowhere"),
    ],
)
def test_nonsense_is_refused_with_its_line(tmp_path: Path, lines: str, said: str) -> None:
    (tmp_path / "holdfast.toml").write_text(f"[events]\n{lines}\n")
    done = run_holdfast("serve", "--port", "0", cwd=tmp_path)
    assert done.returncode == 64
    assert said in done.stderr
