"""What `holdfast recover` says of what it could not use, and of what that means later."""

from typing import Any

import msgspec

from holdfast.cli.recovering import sentences_of
from holdfast.recovery.report import Report


def report(**told: Any) -> Report:
    """Nothing found, but for what is told."""
    empty: dict[str, Any] = {"int": 0, "str": "", "bool": False, "float": 0.0, "int | None": None}
    fields = {}
    for field in msgspec.structs.fields(Report):
        name = str(getattr(field.type, "__name__", field.type))
        fields[field.name] = empty.get(name, None if "None" in name else ())
    return Report(**{**fields, **told})


def said(**told: Any) -> str:
    return "\n".join(sentences_of(report(**told)))


def test_what_is_left_without_a_row_is_said_to_go_after_a_day() -> None:
    assert "strays" not in said()
    text = said(packs_left=3)
    assert "3 without a row are left to the search for strays" in text
    assert "declares them dead once it has seen them for a day" in text
    assert "recover again" not in text
    assert "bring more stores and recover again" in said(packs_left=3, packs_unreadable=2)


def test_a_first_snapshot_that_could_not_be_written_is_said() -> None:
    assert "first snapshot" not in said(first_snapshot="index-0001-...")
    assert "(no room): until the node has made one" in said(first_snapshot_failed="no room")
