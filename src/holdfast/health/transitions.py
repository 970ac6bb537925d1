"""How a store's state changes: the whole of it, as a table. Pure.

A line says: in these states, on this evidence, if these guards hold, the state becomes that one, for this
reason. The first line that fits counts; evidence that no line fits changes nothing. `docs/health.md` holds
the table and the diagram that are generated from it here, and a test holds that page to it.

What must hold: every state that is not healthy has a way out that needs nobody's help; and only a store that
is known to be gone is taken out of use without `ROOM`.
"""

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple


class StoreState(Enum):
    """How a store is; what each one means for reads and writes is in `USE`."""

    HEALTHY = "healthy"
    SUSPECT = "suspect"
    SITTING_OUT = "sitting-out"
    DOWN = "down"
    PROBATION = "probation"


class Evidence(Enum):
    """What a detector has found."""

    FAILURES = "failures in a row"
    ERROR_RATE = "failing often"
    DEAD = "nothing but failures"
    GONE = "known to be gone"
    SILENT = "silent"
    SLOW = "slow"
    ANSWERS = "answers well"
    PROBED = "a probe succeeds"
    TIME = "time passes"
    ATTACHED = "attached"


class Guard(Enum):
    """What has to be so besides."""

    ROOM = "room"
    RELAPSED = "relapsed"
    LATE_ONLY = "late only"
    CALM = "calm"
    RESTED = "rested"
    PROVEN = "proven"


GUARDS = {
    Guard.ROOM: "fewer stores are out of use than every scheme in use can lose",
    Guard.RELAPSED: "it was suspect within the last 30 s",
    Guard.LATE_ONLY: "its answers were overdue, none of them an error",
    Guard.CALM: "it fails no more often than anybody, and is not slow",
    Guard.RESTED: "its rest is over (none after a first fall; then longer with each), or it is needed",
    Guard.PROVEN: "it has been well for 5 s",
}
"""The guards in words, for the documentation."""

USE = {
    StoreState.HEALTHY: ("yes", "yes"),
    StoreState.PROBATION: ("yes", "yes"),
    StoreState.SUSPECT: ("only when nothing else", "only when nothing else"),
    StoreState.SITTING_OUT: ("only when nothing else", "sent, not waited for"),
    StoreState.DOWN: ("only when nothing else", "no"),
}
"""Reads and writes in each state."""


class Transition(NamedTuple):
    """One line. `reason` is filled in with the facts of the evidence."""

    before: tuple[StoreState, ...]
    evidence: Evidence
    guards: tuple[Guard, ...]
    after: StoreState
    reason: str


_H, _S, _O = StoreState.HEALTHY, StoreState.SUSPECT, StoreState.SITTING_OUT
_D, _P = StoreState.DOWN, StoreState.PROBATION

TRANSITIONS = (
    Transition(
        (_H, _P),
        Evidence.FAILURES,
        (Guard.LATE_ONLY, Guard.RELAPSED, Guard.ROOM),
        _O,
        "again {failures} in a row: {error}",
    ),
    Transition((_H, _P), Evidence.FAILURES, (), _S, "{failures} in a row: {error}"),
    Transition((_H, _P), Evidence.ERROR_RATE, (), _S, "{share} of its calls fail, last: {error}"),
    Transition(
        (_H, _P, _S), Evidence.SLOW, (Guard.ROOM,), _O, "{operation} takes {latency}, peers at most {fence}"
    ),
    Transition((_H, _P, _S, _O), Evidence.SILENT, (Guard.ROOM,), _D, "no answer for {silence}"),
    Transition((_H, _P), Evidence.SILENT, (), _S, "no answer for {silence}"),
    Transition(
        (_H, _P, _S, _O), Evidence.DEAD, (Guard.ROOM,), _D, "{failures} failures in a row, last: {error}"
    ),
    Transition((_H, _P), Evidence.DEAD, (), _S, "{failures} failures in a row, last: {error}"),
    Transition((_H, _P, _S, _O), Evidence.GONE, (), _D, "{error}"),
    Transition((_S,), Evidence.ANSWERS, (Guard.CALM, Guard.RESTED), _H, "answers again"),
    Transition((_S,), Evidence.PROBED, (Guard.CALM, Guard.RESTED), _H, "probe succeeded"),
    Transition((_D,), Evidence.PROBED, (Guard.RESTED,), _P, "probe succeeded"),
    Transition((_O,), Evidence.TIME, (Guard.RESTED, Guard.CALM), _P, "rest is over"),
    Transition((_P,), Evidence.TIME, (Guard.PROVEN,), _H, "well for 5 s"),
    Transition((_D,), Evidence.ATTACHED, (Guard.RESTED,), _P, "attached again"),
    Transition((_H, _S, _O), Evidence.ATTACHED, (), _P, "attached again"),
)


def find(state: StoreState, evidence: Evidence, holds: Callable[[Guard], bool]) -> Transition | None:
    """The line that fits, or None: then nothing changes."""
    for line in TRANSITIONS:
        if line.evidence is evidence and state in line.before and all(holds(guard) for guard in line.guards):
            return line
    return None


def as_markdown() -> str:
    """States, transitions, guards and the diagram, for the documentation."""
    lines = ["| state | reads | writes |", "|---|---|---|"]
    lines += [f"| `{state.value}` | {reads} | {writes} |" for state, (reads, writes) in USE.items()]
    lines += ["", "| in | on | if | becomes | reason |", "|---|---|---|---|---|"]
    lines += [
        f"| {', '.join(state.value for state in line.before)} | {line.evidence.value} | "
        f"{_guards(line) or '-'} | `{line.after.value}` | {line.reason} |"
        for line in TRANSITIONS
    ]
    lines += ["", "| guard | holds when |", "|---|---|"]
    lines += [f"| {guard.value} | {words} |" for guard, words in GUARDS.items()]
    return "\n".join([*lines, "", *as_mermaid(), ""])


def as_mermaid() -> list[str]:
    """The diagram, in mermaid's language: one arrow for each pair of states, with all that leads along it."""
    arrows: dict[tuple[StoreState, StoreState], list[str]] = {}
    for line in TRANSITIONS:
        guards = _guards(line)
        label = f"{line.evidence.value} [{guards}]" if guards else line.evidence.value
        for before in line.before:
            labels = arrows.setdefault((before, line.after), [])
            if label not in labels:
                labels.append(label)
    return [
        "```mermaid",
        "stateDiagram-v2",
        *(f'    state "{state.value}" as {state.name.lower()}' for state in StoreState),
        "    [*] --> healthy",
        *(
            f"    {before.name.lower()} --> {after.name.lower()}: {' / '.join(labels)}"
            for (before, after), labels in arrows.items()
        ),
        "```",
    ]


def _guards(line: Transition) -> str:
    return ", ".join(guard.value for guard in line.guards)
