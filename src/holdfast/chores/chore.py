"""What a chore is, and what is told of it.

A chore does one bounded unit of work at a time and says whether there was any. What must hold: a unit may
be cut at any point, by a crash or by the runner, and be done twice, without harm; and while it works it
offers now and then to give way, by `sleep(0)` of the clock that it was given (`holdfast.chores.giving_way`).
`ChoreRunner` (`holdfast.chores.runner`) runs them.
"""

from enum import Enum
from typing import Protocol, runtime_checkable

from msgspec import Struct


class Chore(Protocol):
    """Background work."""

    @property
    def name(self) -> str:
        """One word, for commands, status and logs."""
        ...

    @property
    def interval_s(self) -> float:
        """How long to wait when there is nothing to do."""
        ...

    async def step(self) -> bool:
        """One bounded unit of work; False when there was none. May raise: it is tried again later."""
        ...


class Progress(Struct, frozen=True):
    """How far a chore is. `done` only grows while `total` is worked off, in `unit`s (a plural, as "packs" or
    "bytes"); `total` is None where it is not known. `detail` is a sentence for a person."""

    done: int = 0
    total: int | None = None
    unit: str = ""
    detail: str = ""


@runtime_checkable
class HasProgress(Protocol):
    """A chore that can say how far it is."""

    def progress(self) -> Progress:
        """Cheap, without I/O; asked after each unit."""
        ...


@runtime_checkable
class HasUrgency(Protocol):
    """A chore whose next unit may be too urgent to give way to clients as others do."""

    @property
    def is_urgent(self) -> bool:
        """Asked before each unit."""
        ...


@runtime_checkable
class HasPressure(Protocol):
    """A chore that may be given more of the time than others."""

    @property
    def pressure(self) -> float:
        """From 0 (it can wait) to 1 (somebody waits for it, or it was put off for long). Asked before each
        unit; see `holdfast.chores.throttle`."""
        ...


class ChoreState(Enum):
    """What a chore is about.

    working     it found something to do, and goes on
    idle        there was nothing to do, and it looks again later
    paused      somebody said so, or it would be dangerous to go on
    failed      its last unit ended with an error; it is tried again, as if idle
    elsewhere   another node holds its lease
    """

    WORKING = "working"
    IDLE = "idle"
    PAUSED = "paused"
    FAILED = "failed"
    ELSEWHERE = "elsewhere"


class ChoreStatus(Struct, frozen=True, kw_only=True):
    """A chore for `holdfast chores`. `why` belongs to the state; `last_error` stays when it is over.
    `rate` is units of progress a second, lately, `left_s` how long the rest takes at that rate; `worked_s` is
    time at work since the node started, `rests` how many times as long it sleeps as it works, for clients."""

    name: str
    state: ChoreState
    why: str = ""
    units_done: int = 0
    worked_s: float = 0.0
    rests: float = 0.0
    progress: Progress | None = None
    rate: float | None = None
    left_s: float | None = None
    errors: int = 0
    last_error: str = ""
    last_error_s_ago: float | None = None
