"""Changes of the index are told once, and what lasts only a moment is not."""

from holdfast.index.port import IndexState, IndexStatus, MemberStatus
from holdfast.node.index_watch import LOOKS, Changed, IndexWatch


def status(state: IndexState = IndexState.SERVING, **members: str) -> IndexStatus:
    found = tuple(MemberStatus(name, word, f"/mnt/{name}: so") for name, word in members.items())
    return IndexStatus(state, "sqlite", "x", 1, (*found, MemberStatus("copy a", "out")), 1)


def looks(watch: IndexWatch, count: int, now: IndexStatus) -> list[Changed]:
    return [change for _ in range(count) for change in watch.look(now)]


def test_a_member_that_goes_and_returns_is_told_once_each() -> None:
    watch = IndexWatch()
    assert looks(watch, 10, status(a="current", b="current")) == []
    assert looks(watch, LOOKS - 1, status(a="out", b="current")) == []
    (gone,) = looks(watch, 10, status(a="out", b="current"))
    assert gone == Changed("a", "current", "out", "/mnt/a: so")
    (back,) = looks(watch, 10, status(a="current", b="current"))
    assert (back.subject, back.before, back.after) == ("a", "out", "current")


def test_a_member_that_is_behind_for_a_moment_is_no_event() -> None:
    watch = IndexWatch()
    for _ in range(20):
        assert looks(watch, 1, status(a="behind")) == []
        assert looks(watch, LOOKS - 1, status(a="current")) == []


def test_a_member_that_is_out_from_the_start_is_told() -> None:
    (gone,) = looks(IndexWatch(), LOOKS, status(a="current", b="absent"))
    assert (gone.subject, gone.after) == ("b", "absent")


def test_an_index_that_stops_serving_is_told_at_once() -> None:
    watch = IndexWatch()
    (stopped,) = looks(watch, 3, status(IndexState.UNAVAILABLE))
    assert stopped == Changed("", "serving", "unavailable", "nothing can be read or written")
    (serves,) = looks(watch, 3, status())
    assert (serves.before, serves.after) == ("unavailable", "serving")
