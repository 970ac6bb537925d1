"""What is remembered of one store: its state, its detectors' memories, and how often it has fallen."""

from msgspec import Struct

from holdfast.base.ids import StoreId
from holdfast.health.distance import Distance
from holdfast.health.error_rate import ErrorRate
from holdfast.health.fence import Lately, SlowRun
from holdfast.health.phi import PhiAccrual
from holdfast.health.tail import Tail
from holdfast.health.transitions import StoreState
from holdfast.stores.measured import Operation

CALL_PAUSE_S = 1.0
CALL_SPREAD_S = 0.08
"""A call may be large, and wait for its turn behind others: a store that usually answers in milliseconds is
silent after one and a half seconds."""

PROBE_PAUSE_S = 0.25
PROBE_SPREAD_S = 0.05

SELDOM_PAUSE_S = 1.5
SELDOM_SPREAD_S = 0.1
"""Of what goes a long way, three times there and back."""
"""A probe is small and asked for when little else is going on: half a second."""


class StoreEvent(Struct, frozen=True):
    """A change of state, with why. `at` is monotonic seconds; `detector` is who found it, `evidence` what
    was seen, as text."""

    store: StoreId
    before: StoreState
    after: StoreState
    at: float
    reason: str
    detector: str = ""
    evidence: dict[str, str] = {}


class StoreCounts(Struct):
    """What happened to a store since the node started."""

    reads: int = 0
    writes: int = 0
    read_errors: int = 0
    write_errors: int = 0
    wrong_blocks: int = 0
    overdue: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    last_error: str = ""


DOUBTED_FIRST_S = 3.0
DOUBTED_MAX_S = 60.0


class Record:
    """One store. Where there are two of a thing, they are by whether a call was `writing`."""

    __slots__ = (
        "behind",
        "calls",
        "counts",
        "distance",
        "doubted_s",
        "doubted_until",
        "error_rates",
        "failures",
        "falls",
        "forgiven_at",
        "full",
        "full_until",
        "gone",
        "heard_at",
        "kept",
        "late_only",
        "lately",
        "probe",
        "probe_began",
        "probed_at",
        "reason",
        "rest_until",
        "run",
        "seldom",
        "since",
        "state",
        "suspected_at",
        "waits",
    )

    def __init__(self, now: float) -> None:
        self.state = StoreState.HEALTHY
        self.since = now
        self.reason = ""
        self.gone = False
        self.kept = False
        self.full = False
        self.full_until = 0.0
        self.falls = 0
        self.forgiven_at = now
        self.rest_until = now
        self.suspected_at = float("-inf")
        self.failures = {False: 0, True: 0}
        self.late_only = True
        self.error_rates = {False: ErrorRate(), True: ErrorRate()}
        self.calls = {
            writing: PhiAccrual(pause_s=CALL_PAUSE_S, spread_min_s=CALL_SPREAD_S) for writing in (False, True)
        }
        self.probe = PhiAccrual(pause_s=PROBE_PAUSE_S, spread_min_s=PROBE_SPREAD_S)
        self.probe_began: float | None = None
        self.probed_at = float("-inf")
        self.heard_at = now
        self.lately = {operation: Lately() for operation in JUDGED}
        self.run = SlowRun()
        self.behind = SlowRun()
        self.doubted_until = float("-inf")
        self.doubted_s = DOUBTED_FIRST_S
        self.waits = Tail()
        self.distance: Distance | None = None
        self.seldom = False
        self.counts = StoreCounts()

    @property
    def trip_s(self) -> float:
        """How far away it is, 0.0 for what is here."""
        return 0.0 if self.distance is None else self.distance.trip_s

    def owes_long(self, now: float, doubt: float) -> bool:
        """Whether an answer is owed for longer than is ordinary: phi is at `doubt`."""
        return any(phi.phi(now) >= doubt for phi in self.phis)

    def probe_seldom(self) -> None:
        """Probes of it cost money, and go a long way."""
        if not self.seldom:
            self.seldom = True
            self.probe = PhiAccrual(pause_s=SELDOM_PAUSE_S, spread_min_s=SELDOM_SPREAD_S)

    @property
    def jitter_s(self) -> float:
        """By how much the way to it varies, as far as that is known."""
        return 0.0 if self.distance is None else self.distance.jitter_s

    @property
    def phis(self) -> tuple[PhiAccrual, ...]:
        """All detectors of silence."""
        return (self.probe, *self.calls.values())

    def heard(self, now: float) -> None:
        """Silence begins anew for every detector."""
        for phi in self.phis:
            phi.heard(now)

    def doubt(self, now: float) -> None:
        """It lags behind: others are preferred for a while, a longer one each time, since it has few reads to
        show better with, and each try is paid for by clients."""
        if now > self.doubted_until:
            again = now - self.doubted_until <= 2 * DOUBTED_MAX_S
            self.doubted_s = min(2 * self.doubted_s, DOUBTED_MAX_S) if again else DOUBTED_FIRST_S
        self.doubted_until = now + self.doubted_s

    def forget_failures(self) -> None:
        """A good end of a bad row."""
        self.failures = {False: 0, True: 0}
        self.late_only = True

    def forget_speed(self) -> None:
        """What it was like before says nothing of what it is like now."""
        for lately in self.lately.values():
            lately.clear()
        self.run.end()
        self.waits.clear()


JUDGED = (Operation.GET, Operation.PUT, Operation.PROBE)
"""What is compared with peers: each with its like."""
