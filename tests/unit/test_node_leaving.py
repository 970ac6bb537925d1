"""What is said about doing without a store or a node: nothing that is lost is called made again."""

from collections import Counter

from holdfast.node.leaving import Cost


def test_what_is_lost_is_not_said_to_be_made_again() -> None:
    assert Cost(shards=3, remaining=Counter({-1: 2})).once_gone("it") == [
        "2 packs cannot be read without what it held."
    ]
    assert Cost(shards=9, remaining=Counter({-1: 1, 0: 4})).once_gone("it") == [
        "1 pack cannot be read without what it held.",
        "What else it held is made again from the others; until then 4 packs could lose no further store.",
    ]


def test_what_is_not_lost_is_made_again() -> None:
    assert Cost(shards=4, remaining=Counter({0: 1, 1: 3})).once_gone("it", ["more"]) == [
        "What it held is made again from the others; until then 1 pack could lose no further store, "
        "3 packs could lose 1 more, more."
    ]
    assert Cost().once_gone("it") == []
