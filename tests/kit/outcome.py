"""What a drill came to: what is counted, the bars that hold always, and a line of the table.

Whoever did not look for something leaves None there, and the table says `-`: nothing is shown as 0 that was
not counted.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Outcome:
    """Times in seconds; None where it did not come to pass, or nobody looked. `acknowledged` are changes;
    `stale` are answers that were right once; `ejected` counts who was taken for faulty and was not;
    `detected_s` is until all who must know knew of the fault, `switched_s` until service was elsewhere, and
    `redundant_s` from when the fault was over until all was as promised."""

    name: str
    requests: int = 0
    acknowledged: int = 0
    failed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    ejected: int | None = None
    took_s: list[float] = field(default_factory=list)
    longest_s: float = 0.0
    gaps_s: dict[str, float] = field(default_factory=dict)
    detected_s: float | None = None
    switched_s: float | None = None
    redundant_s: float | None = None

    def check(self) -> None:
        """The bars that count: nothing failed, nothing lost, nothing wrong, nothing out of date."""
        assert (self.failed, self.wrong, self.stale, self.lost) == ([], [], [], []), self.row()

    def part_s(self, share: float) -> float | None:
        """What this share of all requests took at most."""
        took = sorted(self.took_s)
        return took[min(len(took) - 1, int(share * len(took)))] if took else None

    def row(self) -> str:
        """A line of the table."""
        gap = max(self.gaps_s.values(), default=None)
        counted = (
            self.requests,
            self.acknowledged,
            len(self.failed),
            len(self.lost),
            len(self.wrong),
            len(self.stale),
            self.ejected,
        )
        times = (
            self.part_s(0.5),
            self.part_s(0.99),
            self.longest_s if self.requests else None,
            gap,
            self.detected_s,
            self.switched_s,
            self.redundant_s,
        )
        return _line(
            self.name,
            ["-" if number is None or not self.requests else str(number) for number in counted],
            ["-" if seconds is None else f"{seconds:.2f} s" for seconds in times],
        )


def _line(name: str, counted: list[str], times: list[str]) -> str:
    words = [f"{word:>8}" for word in counted] + [f"{word:>9}" for word in times]
    return f"{name:<46}" + " ".join(words)


HEADING = _line(
    "fault",
    ["requests", "acked", "failed", "lost", "wrong", "stale", "ejected"],
    ["p50", "p99", "longest", "gap", "detected", "switched", "whole"],
)


def show(outcomes: list[Outcome]) -> None:
    """The table, for whoever looks, and for `make drill`."""
    for line in (HEADING, *(outcome.row() for outcome in outcomes)):
        print(line)  # noqa: T201
    if path := os.environ.get("HOLDFAST_DRILL_TABLE"):
        with Path(path).open("a") as table:
            heading = [] if table.tell() else [HEADING]
            table.writelines(f"{line}\n" for line in (*heading, *(outcome.row() for outcome in outcomes)))
