"""What clients saw, and whether one store of objects, one request after the other, could have shown it.

Each key is a register that holds nothing or a version, known by a token that no two writes share. Every
request is an interval between two ticks of one counter; `check` looks for an order of the requests that
respects the intervals and explains every answer (linearizability, Herlihy and Wing 1990; found just in
time, request by request, as in Lowe, "Testing for linearizability", 2017). What was acknowledged has to be
in that order exactly once; what failed or met a crash may be in it once, or never.

Of two ways to one state, the one that used fewer of the requests that need not happen can do all that the
other can. Only that one is followed: requests in doubt cost their number, not the number of their subsets.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import NamedTuple

State = str | None
"""A version's token, or None where nothing is."""


class Sort(Enum):
    """What a request needs to have found. ONE_OF has several etags in one text."""

    ANYTHING = "anything"
    NOTHING = "nothing"
    SOMETHING = "something"
    TOKEN = "version"
    ETAG = "etag"
    ONE_OF = "one of"
    OTHER_ETAG = "something other than etag"


class Need(NamedTuple):
    """What must have been there for the answer that was given."""

    sort: Sort
    value: str = ""

    def __str__(self) -> str:
        return f"{self.sort.value} {self.value}".strip()


ANYTHING = Need(Sort.ANYTHING)
NOTHING = Need(Sort.NOTHING)
SOMETHING = Need(Sort.SOMETHING)


class Op(NamedTuple):
    """One request on one key. With `writes`, it leaves `leaves` there. `ended` is None for one that was
    never acknowledged and may still come; an `optional` one that ended can't come afterwards."""

    number: int
    what: str
    began: int
    ended: int | None
    need: Need = ANYTHING
    writes: bool = False
    leaves: State = None
    optional: bool = False

    def __str__(self) -> str:
        effect = f" leaves {self.leaves or 'nothing'}" if self.writes else ""
        ended = "open" if self.ended is None else str(self.ended)
        doubt = " (perhaps)" if self.optional else ""
        return f"[{self.began}, {ended}] {self.what}: found {self.need}{effect}{doubt}"


Etags = Mapping[str, frozenset[str]]
"""What each version's etag is; several where only a failed copy could tell."""


def holds(need: Need, state: State, etags: Etags) -> bool:
    """Whether `need` is met."""
    match need.sort:
        case Sort.ANYTHING:
            return True
        case Sort.NOTHING:
            return state is None
        case Sort.SOMETHING:
            return state is not None
        case Sort.TOKEN:
            return state == need.value
        case Sort.ETAG:
            return state is not None and need.value in etags[state]
        case Sort.ONE_OF:
            return state is not None and not etags[state].isdisjoint(need.value.split())
        case Sort.OTHER_ETAG:
            return state is not None and etags[state] != frozenset({need.value})


class Impossible(Exception):
    """No order explains what was seen."""


_Config = tuple[State, frozenset[int]]


def check(ops: Iterable[Op], etags: Etags) -> None:
    """Raises Impossible, with the requests so far and the one that can't be explained."""
    ops = sorted(ops)
    by_number = {op.number: op for op in ops}
    moments = sorted(
        [(op.began, 0, op.number) for op in ops]
        + [(op.ended, 1, op.number) for op in ops if op.ended is not None]
    )
    optional = frozenset(op.number for op in ops if op.optional)
    pending: dict[int, Op] = {}
    configs: set[_Config] = {(None, frozenset())}
    for _, is_end, number in moments:
        op = by_number[number]
        if not is_end:
            pending[number] = op
            if not op.writes:
                configs = {_read(config, {number: op}, etags) for config in configs}
            continue
        if op.optional:
            configs |= _reachable(configs, pending, number, etags, optional)
        else:
            configs = _reachable(configs, pending, number, etags, optional)
        del pending[number]
        configs = _frugal({(state, done - {number}) for state, done in configs}, optional)
        if not configs:
            raise Impossible(_explain(op, ops))


def _read(config: _Config, reads: Mapping[int, Op], etags: Etags) -> _Config:
    """With all reads done that this state explains: doing them at once never hurts."""
    state, done = config
    seen = {number for number, op in reads.items() if number not in done and holds(op.need, state, etags)}
    return (state, done | seen) if seen else config


def _reachable(
    configs: set[_Config], pending: Mapping[int, Op], wanted: int, etags: Etags, optional: frozenset[int]
) -> set[_Config]:
    """All that can be by the time `wanted` is done."""
    reads = {number: op for number, op in pending.items() if not op.writes}
    writes = {number: op for number, op in pending.items() if op.writes}
    frugal = _Frugal(optional)
    queue = deque(config for config in sorted(configs, key=lambda one: len(one[1])) if frugal.takes(config))
    reached: set[_Config] = set()
    while queue:
        config = queue.popleft()
        state, done = config
        if wanted in done:
            reached.add(config)
            continue
        for number, op in writes.items():
            if number not in done and holds(op.need, state, etags):
                after = _read((op.leaves, done | {number}), reads, etags)
                if frugal.takes(after):
                    queue.append(after)
    return reached


class _Frugal:
    """Knows the ways that were taken, and refuses those that can do no more than one of them. What has to
    happen is compared as it is; of what need not, less is better."""

    def __init__(self, optional: frozenset[int]) -> None:
        self._optional = optional
        self._taken: dict[_Config, list[frozenset[int]]] = {}

    def takes(self, config: _Config) -> bool:
        """Whether this way is worth following."""
        state, done = config
        used = done & self._optional
        taken = self._taken.setdefault((state, done - used), [])
        if any(less <= used for less in taken):
            return False
        taken.append(used)
        return True


def _frugal(configs: set[_Config], optional: frozenset[int]) -> set[_Config]:
    frugal = _Frugal(optional)
    return {config for config in sorted(configs, key=lambda one: len(one[1])) if frugal.takes(config)}


def _explain(op: Op, ops: Iterable[Op]) -> str:
    assert op.ended is not None
    before = "\n".join(f"  {other}" for other in ops if other.began <= op.ended)
    return f"no order of these requests explains\n  {op}\namong\n{before}"
