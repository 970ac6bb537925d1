"""Which log is the log: the decision at the start of a process. Pure.

The argument is Raft's. A record was acknowledged only when a majority of the members had synced it, and
a process served only after a record of its own epoch was acknowledged. So of any majority that votes, the
chain with the highest (epoch, sequence) of its last record holds everything that was ever
acknowledged, and so does any chain that is higher still, wherever it lies. What that chain lacks was
never acknowledged and may be cut. Which majority counts is said by the newest membership in it.

A member votes when it verifies without damage. One that is empty, damaged or of another index does not:
it cannot say what it once held.
"""

from collections.abc import Callable, Mapping, Sequence
from enum import Enum

from msgspec import Struct

from holdfast.index.sqlite.scan import Scan


class Verdict(Enum):
    """What can be done with what was found."""

    CHOSEN = "a log was chosen"
    NEW = "all members are there and hold nothing"
    TOO_FEW = "fewer than a majority can vote"


class Choice(Struct, frozen=True):
    """The decision. `source` holds the whole chosen chain; `members` is its newest membership; `voters`
    are those of them who vote; `wanting` says of each other member why not."""

    verdict: Verdict
    incarnation: bytes = b""
    source: str = ""
    members: tuple[str, ...] = ()
    voters: tuple[str, ...] = ()
    wanting: tuple[tuple[str, str], ...] = ()


def majority(members: int) -> int:
    """How many of `members` are more than half."""
    return members // 2 + 1


def choose(given: Sequence[str], scans: Mapping[str, Scan], failed: Mapping[str, str]) -> Choice:
    """The log of `given` members, from the scans of those that could be read and the failures of the
    others; who is in neither has not answered."""
    if all(name in scans and _new(scans[name]) for name in given):
        return Choice(Verdict.NEW, members=tuple(given))
    with_log = {name: scan for name, scan in scans.items() if scan.tip != (0, 0)}
    # Foreign logs are told apart by incarnation; ours is the one with most members, then the highest.
    incarnations = {scan.incarnation for scan in with_log.values()}
    choices = [_choose_in(inc, given, with_log, scans, failed) for inc in incarnations if inc]
    if not choices:
        return Choice(Verdict.TOO_FEW, wanting=_why(given, (), scans, failed, b""))
    return max(
        choices,
        key=lambda choice: (
            choice.verdict is Verdict.CHOSEN,
            len(choice.voters),
            with_log[choice.source].tip,
            choice.incarnation,
        ),
    )


def _choose_in(
    incarnation: bytes,
    given: Sequence[str],
    with_log: Mapping[str, Scan],
    scans: Mapping[str, Scan],
    failed: Mapping[str, str],
) -> Choice:
    mine = {name: scan for name, scan in with_log.items() if scan.incarnation == incarnation}
    # At the same tip, one without damage, and of those the first given, so that the choice is stable.
    source = max(mine, key=lambda name: (mine[name].tip, mine[name].votes, -_place(name, given)))
    members = mine[source].members
    only_founded = mine[source].tip[1] == 1
    voters = tuple(
        name
        for name in members
        if (scan := mine.get(name)) and (scan.votes or (only_founded and _just_founded(scan)))
    )
    enough = bool(members) and len(voters) >= majority(len(members))
    return Choice(
        Verdict.CHOSEN if enough else Verdict.TOO_FEW,
        incarnation,
        source,
        members,
        voters,
        _why(members or tuple(given), voters, scans, failed, incarnation),
    )


def _new(scan: Scan) -> bool:
    # A founding that was interrupted before it served leaves members that were joining, up to its one record.
    return scan.incarnation is None or (scan.joining and not scan.damage and scan.tip[1] <= 1)


def _just_founded(scan: Scan) -> bool:
    # All members hold the founding record before the first of them stops joining.
    return scan.joining and not scan.damage and scan.tip[1] == 1


def _place(name: str, given: Sequence[str]) -> int:
    return given.index(name) if name in given else len(given)


def _why(
    members: Sequence[str],
    voters: Sequence[str],
    scans: Mapping[str, Scan],
    failed: Mapping[str, str],
    incarnation: bytes,
) -> tuple[tuple[str, str], ...]:
    reasons: list[tuple[str, str]] = []
    for name in members:
        if name in voters:
            continue
        scan = scans.get(name)
        if scan is None:
            reasons.append((name, failed.get(name, "no answer")))
        elif scan.incarnation is None:
            reasons.append((name, "is empty"))
        elif incarnation and scan.incarnation != incarnation:
            reasons.append((name, "belongs to another index"))
        else:
            reasons.append(
                (
                    name,
                    "; ".join(scan.damage)
                    or ("its copy is not finished" if scan.joining else "holds no record"),
                )
            )
    return tuple(reasons)


def last_common(member: Scan, low: int, high: int, hash_at: Callable[[int], bytes | None]) -> int | None:
    """The last sequence at which a member's chain agrees with ours, whose records `low` to `high` have
    known hashes; None when it lies before what either still has.

    Chains are hash-linked, so that agreement at one record is agreement on all before it, and the
    last agreement can be found by halving."""
    if member.base is None:
        return None
    low, high = max(low, member.base.sequence), min(high, member.tip[1])
    if low > high or member.hash_at(low) != hash_at(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        if member.hash_at(middle) == hash_at(middle):
            low = middle
        else:
            high = middle - 1
    return low
