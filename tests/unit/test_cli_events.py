"""`holdfast events`: times that people type, lines that people read."""

from datetime import UTC, datetime

import pytest

from holdfast.base.errors import InvalidInput
from holdfast.cli.events import event_line, read_since
from holdfast.health.events import Event

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("text", "ago_s"),
    [
        ("90s", 90),
        ("15m", 900),
        ("12 h", 43_200),
        ("7d", 604_800),
        ("2w", 1_209_600),
        ("2026-03-01", 43_200),
        ("2026-03-01T11:30", 1800),
        ("2026-03-01T12:30+01:00", 1800),
    ],
)
def test_a_time_is_an_age_or_a_date(text: str, ago_s: float) -> None:
    assert NOW - read_since(text, NOW) == pytest.approx(ago_s)


@pytest.mark.parametrize("text", ["", "yesterday", "7", "7 years", "2026-13-01"])
def test_what_is_no_time_is_refused_with_what_would_be(text: str) -> None:
    with pytest.raises(InvalidInput, match="15m, 12h, 7d"):
        read_since(text, NOW)


def test_a_line_says_when_what_why_and_what_was_before() -> None:
    event = Event(
        wall=NOW, kind="store", subject="disk3", before="healthy", after="down", reason="no answer for 1.52 s"
    )
    assert event_line(event) == (
        "2026-03-01 12:00:00  store disk3 is down: no answer for 1.52 s (was healthy)"
    )
    assert event_line(Event(wall=NOW, reason="so it is")) == "2026-03-01 12:00:00  so it is"
