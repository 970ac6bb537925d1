"""What clients saw of a node that was killed is what `holdfast uptime` says, while it is down and after."""

import contextlib
import io
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from holdfast.cli.main import run
from holdfast.health.ledger import BEAT_S
from tests.kit.process import NodeProcess, run_holdfast

SLACK_S = 30.0
"""What a busy machine may add to a beat."""
DOWN_S = 3.0


def away_times(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """Times without a process; on a busy machine one may also have stood still for a while."""
    return [away for away in answer["uptime"]["away"] if away["why"] != "stalled"]


def uptime(node: NodeProcess, *more: str) -> dict[str, Any]:
    """What `holdfast uptime --json` prints, without starting a program for it."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert run(["uptime", "--json", "--window", "1h", "--data", str(node.data), *more]) == 0
    answer: dict[str, Any] = json.loads(said.getvalue())
    return answer


@pytest.mark.slow
def test_a_node_that_is_killed_was_away_for_as_long_as_its_clients_saw(tmp_path: Path) -> None:
    with NodeProcess(tmp_path) as node:
        client = node.s3()
        client.create_bucket(Bucket="photos")
        for number in range(20):
            client.put_object(Bucket="photos", Key=str(number), Body=b"x" * 5000)
        with pytest.raises(client.exceptions.ClientError):
            client.get_object(Bucket="photos", Key="not there")
        last_success = time.time()
        node.kill()
        killed = time.time()
        threading.Event().wait(DOWN_S)

        down = uptime(node)
        assert not down["running"]
        (away,) = away_times(down)
        assert away["seconds"] >= DOWN_S
        # Of the minute under way nothing was kept. One that had ended by then was.
        kept = down["uptime"]["attempts"] or 0
        gets = ("--bucket", "photos", "--operation", "GetObject")
        gets_kept = uptime(node, *gets)["uptime"]["attempts"] or 0
        shown = run_holdfast("uptime", "--window", "1h", cwd=tmp_path).stdout
        assert "killed or crashed" in shown
        assert "no data" not in shown.splitlines()[0]

        starting = time.time()
        node.start()
        served = time.time()
        again = uptime(node)
        assert again["running"]
        (away,) = away_times(again)
        assert (away["why"], away["uncertain_s"]) == ("crashed", BEAT_S)
        # It never says less than clients saw, and no more than it says that it may.
        assert last_success - away["uncertain_s"] - SLACK_S <= away["wall"] <= killed
        assert starting <= away["wall"] + away["seconds"] <= served
        assert again["uptime"]["longest"]["seconds"] >= away["seconds"] - 0.001
        assert again["uptime"]["downtime_s"] >= away["seconds"] - 0.001

        client = node.s3()
        client.put_object(Bucket="photos", Key="more", Body=b"y")
        client.get_object(Bucket="photos", Key="more")
        assert node.stop() == 0
        after = uptime(node)
        assert [away["why"] for away in away_times(after)] == ["crashed", "stopped"]
        # What was counted in the minute under way was kept at the stop; what the kill cost counts as nothing.
        assert (after["uptime"]["attempts"], after["uptime"]["failures"]) == (kept + 2, 0)
        photos = uptime(node, *gets)["uptime"]
        assert photos["attempts"] == gets_kept + 1
        assert photos["away_s"] >= after["uptime"]["away_s"]  # it is down while we ask
        assert uptime(node, "--store", "disk1")["uptime"]["attempts"] > 0
