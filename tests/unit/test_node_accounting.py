"""What clients get is counted once, for the ledger and for the metrics, at little cost."""

import time

from holdfast.health.ledger import GAVE_UP_S, SLOW_READ_S, Ledger
from holdfast.health.ledger_records import Cell
from holdfast.node.accounting import CLASSES, RequestAccounts
from holdfast.s3.observing import Answered, Ending

COST_US_MAX = 20.0
"""Measured: 1.5 on a quiet machine."""


def answered(
    status: int = 200,
    code: str = "",
    *,
    operation: str = "GetObject",
    bucket: str = "photos",
    admitted: bool = True,
    ending: Ending = Ending.COMPLETE,
    waited_s: float = 0.01,
) -> Answered:
    return Answered(operation, bucket, admitted, status, code, ending, waited_s, waited_s, 1, 2)


class Books:
    def __init__(self) -> None:
        self.ledger = Ledger(0.0, 60.0)
        self.accounts = RequestAccounts(self.ledger)

    def cells(self) -> dict[tuple[str, str], Cell]:
        return {(cell.bucket, cell.operation): cell for cell in self.ledger.finish().cells}

    def classes(self, operation: str) -> dict[str, int]:
        counts = zip(CLASSES, self.accounts.operations[operation].classes, strict=True)
        return {name: count for name, count in counts if count}


def test_every_end_is_counted_under_its_own_name() -> None:
    books = Books()
    for one in (
        answered(),
        answered(404, "NoSuchKey"),
        answered(503, "SlowDown"),
        answered(ending=Ending.BROKEN),
        answered(ending=Ending.GONE),
        answered(ending=Ending.GONE, waited_s=GAVE_UP_S),
        answered(waited_s=SLOW_READ_S * 2),
    ):
        books.accounts.answered(one)
    assert books.classes("GetObject") == {"2xx": 2, "4xx": 1, "5xx": 1, "broken": 1, "gone": 2}
    account = books.accounts.operations["GetObject"]
    assert (account.measured, account.failures, account.slow) == (6, 3, 2)
    cell = books.cells()["photos", "GetObject"]
    assert (cell.successes, cell.failures, cell.neither, cell.slow) == (3, 3, 1, 2)


def test_who_cannot_sign_fills_no_books() -> None:
    books = Books()
    books.accounts.answered(answered(403, "AccessDenied", operation="", bucket="", admitted=False))
    assert books.classes("") == {"4xx": 1}
    assert books.cells() == {}


def test_who_was_turned_away_counts_for_a_bucket_that_is_known_and_for_none_that_is_invented() -> None:
    books = Books()
    books.accounts.answered(answered())
    for bucket in ("photos", "invented"):
        books.accounts.answered(answered(503, admitted=False, bucket=bucket))
    assert books.classes("") == {"5xx": 2}
    cells = books.cells()
    assert cells["photos", "GetObject"].failures == 1
    assert cells["", "GetObject"].failures == 1
    assert len(cells) == 2


def test_counting_a_request_costs_a_few_microseconds() -> None:
    books = Books()
    one = answered()
    best = float("inf")
    for _ in range(10):
        began = time.process_time()
        for _ in range(2000):
            books.accounts.answered(one)
        best = min(best, (time.process_time() - began) / 2000 * 1e6)
    assert best < COST_US_MAX
