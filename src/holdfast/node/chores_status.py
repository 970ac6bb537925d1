"""What a node says of its chores, at `/-/chores`: each with its state, what has to be healed, when all was
read.

`GET` answers `ChoresStatus`; `POST` with `action` (pause, resume) and `chore` changes one, and answers the
same.
"""

import msgspec
from msgspec import Struct

from holdfast.base.errors import HoldfastError, InvalidInput
from holdfast.chores.chore import ChoreStatus
from holdfast.node.background import Background
from holdfast.node.store_routes import refused
from holdfast.s3.face import AdminAnswer, AdminRequest

CHORES_PATH = "/-/chores"
ACTIONS = ("pause", "resume")


class Owed(Struct, frozen=True):
    """Packs that can lose `losses_left` more shards, and bytes that have to be written for them again."""

    losses_left: int
    packs: int
    bytes: int


class HealStatus(Struct, frozen=True, kw_only=True):
    """The debt of repairs. `lost` is what stores that are gone have taken with them, as the last walk over
    all rows has found it, `waiting` what the queue holds (the most urgent of it), `unproven` are packs
    that were written again and not read again yet."""

    lost: tuple[Owed, ...]
    waiting: tuple[Owed, ...]
    unproven: int
    repaired: int
    bytes_written: int


class ScrubStatus(Struct, frozen=True, kw_only=True):
    """How far reading everything is. `oldest_age_s` is how long ago the shard was read that was read longest
    ago; None while one never was. The rest counts from the start."""

    oldest_age_s: float | None
    packs_read: int
    bytes_read: int
    faults_found: int


class ChoresStatus(Struct, frozen=True, kw_only=True):
    """All of it."""

    chores: tuple[ChoreStatus, ...]
    heal: HealStatus
    scrub: ScrubStatus


def chores_status(background: Background) -> ChoresStatus:
    """How everything is now. Cheap."""
    repair, scrub = background.repair, background.scrub
    lost = background.replaced.owed
    waiting = repair.waiting_by_losses_left()
    return ChoresStatus(
        chores=tuple(background.runner.status()),
        heal=HealStatus(
            lost=tuple(Owed(left, *lost[left]) for left in sorted(lost)),
            waiting=tuple(Owed(left, *waiting[left]) for left in sorted(waiting)),
            unproven=repair.unproven,
            repaired=repair.repaired,
            bytes_written=repair.bytes_written,
        ),
        scrub=ScrubStatus(
            oldest_age_s=scrub.oldest_age_s,
            packs_read=scrub.packs_read,
            bytes_read=scrub.bytes_read,
            faults_found=scrub.faults_found,
        ),
    )


async def answer_chores(background: Background, request: AdminRequest) -> AdminAnswer:
    """The answer at `CHORES_PATH`."""
    try:
        if request.method == "POST":
            await _change(background, request.query.get("action", ""), request.query.get("chore", ""))
    except HoldfastError as error:
        return refused(error)
    return AdminAnswer(200, msgspec.json.encode(chores_status(background)))


async def _change(background: Background, action: str, chore: str) -> None:
    if action not in ACTIONS:
        raise InvalidInput(f"{action!r} is nothing that can be done to a chore;", hint="pause or resume it.")
    if action == "pause":
        await background.runner.pause(chore)
    else:
        await background.runner.resume(chore)
