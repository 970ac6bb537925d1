"""What keeps an etcd fit: watching its members, forgetting what is old, taking away lanes nobody uses.

What must hold: what the feed may still be asked for is not forgotten: the last hour, and the newest 100,000
revisions where that is less; and of what the members could do, no more is promised than they showed.
"""

import asyncio
from collections import deque
from contextlib import suppress

from msgspec import Struct

from holdfast.base.clock import Clock
from holdfast.base.errors import Damaged, InvalidInput, Unavailable
from holdfast.index.etcd import wire
from holdfast.index.etcd.connections import Compacted, Connections, Endpoint
from holdfast.index.etcd.lane import check_meta
from holdfast.index.etcd.schema import Keys, Known
from holdfast.index.port import MemberStatus

SAMPLE_EVERY_S = 60.0
LANE_KEPT_S = 3600.0
APPLIED_LAG_MAX = 10_000
WASTE_BYTES_MIN = 256 << 20
FULL_FROM = 0.8
"""The share of its quota from which on etcd wants looking after."""

_ASK_TIMEOUT_S = 1.0
_LOOK_PATIENCE_S = 2.0


class Sample(Struct, frozen=True):
    """The newest revision with a commit, as it was seen at a time of the monotonic clock."""

    at: float
    revision: int


def compact_to(samples: "deque[Sample]", now: float, newest: int, kept_s: float, kept_revisions: int) -> int:
    """Up to where the past may be forgotten, 0 for nothing. Pure."""
    old = [sample.revision for sample in samples if now - sample.at >= kept_s]
    return max(max(old, default=0), newest - kept_revisions, 0)


def judge_members(
    members: list[wire.Member], answers: list[wire.ServerStatus], quota_bytes: int
) -> tuple[list[MemberStatus], int]:
    """Each member for a person, and how many may still go. Pure."""
    answered = {one.member: one for one in answers}
    leaders = {one.leader for one in answers if one.leader}
    newest = max((one.applied for one in answers), default=0)
    shown: list[MemberStatus] = []
    current = 0
    for member in sorted(members, key=lambda member: (member.name, member.id)):
        name = member.name or f"{member.id:x}"
        status = answered.get(member.id)
        if status is None:
            shown.append(MemberStatus(name, "absent", "it does not answer at an address that is known"))
            continue
        lag = newest - status.applied
        details = [
            "leader" if status.leader == member.id else "learner" if member.learner else "follower",
            f"etcd {status.version}",
            f"{status.bytes_stored >> 20} MiB of {quota_bytes >> 20}",
            *status.errors,
        ]
        if waste(status):
            details.append(
                f"{(status.bytes_stored - status.bytes_in_use) >> 20} MiB of it free: defragment it"
            )
        if len(leaders) != 1 or not status.leader:
            state = "out"
            details.append("it knows no leader" if not status.leader else "members disagree who leads")
        elif lag > APPLIED_LAG_MAX:
            state = "behind"
            details.append(f"{lag} entries behind")
        else:
            state = "current"
            current += not member.learner
        shown.append(MemberStatus(name, state, ", ".join(details)))
    voters = sum(not member.learner for member in members)
    return shown, max(0, current - (voters // 2 + 1))


def fullness(answers: list[wire.ServerStatus], quota_bytes: int) -> str:
    """What to say when etcd is about to have used up its quota: then it takes no more changes. Pure."""
    fullest = max(answers, key=lambda one: one.bytes_stored, default=None)
    if fullest is None or fullest.bytes_stored < FULL_FROM * quota_bytes:
        return ""
    todo = "Defragment its members" if waste(fullest) else "Start its members with a larger quota"
    percent = 100 * fullest.bytes_stored // quota_bytes
    return (
        f"etcd has used {percent} % of its quota of {quota_bytes >> 20} MiB, and takes no changes once "
        f"that is full. {todo}."
    )


def waste(status: wire.ServerStatus) -> bool:
    """Whether giving space back is worth the pause it takes."""
    free = status.bytes_stored - status.bytes_in_use
    return status.bytes_in_use > 0 and free > max(WASTE_BYTES_MIN, status.bytes_stored // 2)


class Keeper:
    """Looks once in a while. `members`, `losses` and `remark` are what was seen last."""

    def __init__(
        self,
        connections: Connections,
        keys: Keys,
        known: Known,
        clock: Clock,
        *,
        own_lanes: str,
        kept_s: float,
        kept_revisions: int,
        quota_bytes: int,
    ) -> None:
        self._connections = connections
        self._keys = keys
        self._known = known
        self._clock = clock
        self._own_lanes = keys.lane(own_lanes)
        self._kept_s = kept_s
        self._kept_revisions = kept_revisions
        self._quota_bytes = quota_bytes
        self._samples: deque[Sample] = deque()
        self._compacted = 0
        self._lanes_seen: dict[bytes, Sample] = {}
        self.members: list[MemberStatus] = []
        self.losses = 0
        self.remark = ""

    async def look(self) -> int:
        """Ask who is there; the newest revision of etcd with a commit. Raises Unavailable, Fenced."""
        newest = await self.newest(_LOOK_PATIENCE_S)
        now = self._clock.monotonic()
        if not self._samples or now - self._samples[-1].at >= min(SAMPLE_EVERY_S, self._kept_s):
            self._samples.append(Sample(now, newest))
            while len(self._samples) > 1 and now - self._samples[1].at >= self._kept_s:
                self._samples.popleft()
            await self._forget(now, newest)
            await self._take_away_lanes(now)
        return newest

    async def newest(self, patience_s: float | None = None) -> int:
        """As `newest_commit`."""
        return await newest_commit(self._connections, self._keys, self._known, patience_s)

    async def look_at_members(self) -> None:
        """Each member on its own. Prefers the leader, which answers without asking another."""
        found = await asyncio.gather(*map(self._ask, self._connections.endpoints))
        answers = [one for one, _ in found if one is not None]
        for endpoint, (status, _) in zip(self._connections.endpoints, found, strict=True):
            if status is not None and status.leader == status.member:
                self._connections.prefer(endpoint)
        members = next((members for status, members in found if status is not None and status.leader), [])
        members = members or next((members for _, members in found if members), [])
        if members:
            self.members, self.losses = judge_members(members, answers, self._quota_bytes)
            self.remark = fullness(answers, self._quota_bytes)
        else:
            self.members = [
                MemberStatus(one.name, "out", one.last_error) for one in self._connections.endpoints
            ]
            self.losses = 0
            self.remark = ""

    async def _ask(self, endpoint: Endpoint) -> tuple[wire.ServerStatus | None, list[wire.Member]]:
        """What one member says of itself, and of all."""
        ask = self._connections.ask_one
        try:
            status = wire.server_status(await ask(endpoint, wire.STATUS, b"", _ASK_TIMEOUT_S))
            members = wire.member_list(await ask(endpoint, wire.MEMBER_LIST, b"", _ASK_TIMEOUT_S))
        except (Unavailable, InvalidInput, Damaged):
            return None, []
        return status, members

    async def _forget(self, now: float, newest: int) -> None:
        target = compact_to(self._samples, now, newest, self._kept_s, self._kept_revisions)
        if target <= max(self._compacted, self._known.modified):
            return
        with suppress(Compacted):  # another node was quicker
            await self._connections.call(wire.COMPACT, wire.compact_request(target), lambda data: data)
        self._compacted = target

    async def _take_away_lanes(self, now: float) -> None:
        """Lanes of processes that are gone, apart from the newest, which says how far the index has come."""
        request = wire.range_request(self._keys.lanes, self._keys.lanes_end, keys_only=True)
        answer, _ = await self._connections.call(
            wire.RANGE, request, lambda data: wire.ranged(wire.Message(data))
        )
        seen: dict[bytes, Sample] = {}
        for kv in answer.found:
            before = self._lanes_seen.get(kv.key)
            same = before is not None and before.revision == kv.modified
            seen[kv.key] = before if before is not None and same else Sample(now, kv.modified)
        self._lanes_seen = seen
        newest = max((kv.modified for kv in answer.found), default=0)
        for key, sample in seen.items():
            if (
                now - sample.at >= LANE_KEPT_S
                and sample.revision != newest
                and not key.startswith(self._own_lanes)
            ):
                gone = wire.txn_request(
                    [wire.compare_modified(key, wire.Is.EQUAL, sample.revision)], [wire.delete_op(key)]
                )
                await self._connections.call(wire.TXN, gone, wire.txned)


async def newest_commit(
    connections: Connections, keys: Keys, known: Known, patience_s: float | None = None
) -> int:
    """The newest revision of etcd with a commit. Raises Fenced when the meta row is not the one that is
    known."""
    request = wire.txn_request(
        (),
        [
            wire.range_op(wire.range_request(keys.meta)),
            wire.range_op(
                wire.range_request(keys.lanes, keys.lanes_end, limit=1, newest_first=True, keys_only=True)
            ),
        ],
    )

    def read(data: bytes) -> int:
        answer = wire.txned(data)
        check_meta(answer.ranged(0), known)
        found = answer.ranged(1)
        return found[0].modified if found else known.modified

    answer, _ = await connections.call(wire.TXN, request, read, patience_s=patience_s)
    return answer
