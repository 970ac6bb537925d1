"""`holdfast uptime`: what it refuses in one sentence, and that it never says more than is known."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from holdfast.base.clock import SystemClock
from holdfast.cli.main import run
from holdfast.cli.uptime import duration_down, duration_up, read_window
from holdfast.health.ledger_records import MINUTE_MS, Beat, Cell, Minute, Record
from holdfast.node.ledger_files import LedgerFiles


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LedgerFiles:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "holdfast-data").mkdir()
    files = LedgerFiles(tmp_path / "holdfast-data")
    files.prepare()
    return files


def minute(ago: int, failures: int) -> Record:
    number = int(SystemClock().wall() // 60) - ago
    cell = Cell("photos", "GetObject", 9, failures, good=1, bad=2 if failures else 0)
    return Minute(number, MINUTE_MS, cells=(cell,))


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run(["uptime", *arguments]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run(["uptime", *arguments]) == 64
    said = capsys.readouterr().err
    assert said.startswith("holdfast: ")
    assert said.count("\n") == 1
    return said


def test_an_empty_ledger_has_no_data(files: LedgerFiles, capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys).splitlines()
    assert lines[0] == "availability: no data"
    assert "not running, and no sign of when it was" in "\n".join(lines)
    assert not any("100" in line for line in lines)


def test_a_node_that_is_down_is_down_until_now(
    files: LedgerFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    files.append([minute(10, 0), minute(9, 1)])
    wall_ms = int(SystemClock().wall() * 1000)
    files.beat(Beat(wall_ms - 8 * MINUTE_MS, False, bytes(16), 0), sync=False)
    text = shown(capsys, "--window", "1h")
    assert "not running since" in text
    assert "killed or crashed" in text
    answer: dict[str, Any] = msgspec.json.decode(shown(capsys, "--window", "1h", "--json"))
    figure = answer["uptime"]
    assert answer["running"] is False
    assert (figure["attempts"], figure["failures"]) == (19, 1)
    assert 8 * 60 <= figure["away_s"] <= SystemClock().wall() - wall_ms / 1000 + 8 * 60
    assert figure["downtime_s"] >= figure["away_s"] + 6.0
    assert figure["burn"][0]["fires"]


def test_views_are_chosen_by_name(files: LedgerFiles, capsys: pytest.CaptureFixture[str]) -> None:
    files.append([minute(3, 1)])
    text = shown(capsys, "--window", "1h", "--bucket", "photos", "--operation", "getobject")
    assert "bucket photos, GetObject" in text
    assert "10: 9 good, 1 failed; 0 slow" in text


def test_what_was_damaged_is_said(files: LedgerFiles, capsys: pytest.CaptureFixture[str]) -> None:
    files.append([minute(3, 0)])
    path = next(files.folder.glob("minutes-*"))
    path.write_bytes(path.read_bytes()[:-3])
    assert "damaged in 1 place of the ledger" in shown(capsys, "--window", "1h")


def test_what_cannot_be_answered_is_refused_with_what_would_be_right(
    files: LedgerFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "from 5m to 5 years" in refused(capsys, "--window", "1m")
    assert "from 5m to 5 years" in refused(capsys, "--window", "a while")
    assert "less than 100" in refused(capsys, "--objective", "100")
    assert "did you mean GetObject?" in refused(capsys, "--operation", "GetObjct")
    assert "bucket photos" in shown(capsys, "--bucket", "photos"), "there is nothing to tell it from"
    files.append([minute(3, 0)])
    assert "did you mean photos?" in refused(capsys, "--bucket", "fotos")
    assert "No request to a bucket 'nosuch' is on record" in refused(capsys, "--bucket", "nosuch")
    assert "not both" in refused(capsys, "--store", "disk1", "--bucket", "photos")
    assert "there are none" in refused(capsys, "--store", "disk9")
    assert "There is no ledger" in refused(capsys, "--data", "elsewhere")


@pytest.mark.parametrize(
    ("text", "seconds"), [("5m", 300), ("90m", 5400), ("12h", 43_200), ("30d", 2_592_000), ("2w", 1_209_600)]
)
def test_windows(text: str, seconds: int) -> None:
    assert read_window(text) == seconds


@pytest.mark.parametrize(
    ("seconds", "up", "down"),
    [
        (0.0, "0 s", "0 s"),
        (0.01, "0.1 s", "0 s"),
        (59.99, "60 s", "59.9 s"),
        (60.0, "1 min", "1 min"),
        (61.2, "1 min 2 s", "1 min 1 s"),
        (3599.5, "1 h", "59 min 59 s"),
        (3661.0, "1 h 2 min", "1 h 1 min"),
        (86_400.0, "1 d", "1 d"),
        (172_799.0, "2 d", "1 d 23 h"),
    ],
)
def test_durations_of_what_is_bad_are_rounded_up_and_of_what_is_good_down(
    seconds: float, up: str, down: str
) -> None:
    assert duration_up(seconds) == up
    assert duration_down(seconds) == down
