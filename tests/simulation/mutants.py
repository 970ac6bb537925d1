"""Whether the simulation finds mistakes: each mutant is one that somebody could make, planted while seeds
run.

    make mutants [ARGS="seeds [name ...]"]

Prints for each how many of so many seeds found it, what a find costs in seconds of processor time, and what
the first one said. A mutant that no seed finds is a hole in the simulation, or is for another test: the one
that is named beside it, which is run with it instead, and has to fail. What must hold: without a mutant all
these seeds and tests are green, so that whatever is found was planted.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from copy import copy
from functools import partial
from unittest.mock import patch

import pytest
from msgspec import Struct

from holdfast.base.ids import PackId
from holdfast.chores.collect import Collect
from holdfast.chores.compact import Candidate, Compact
from holdfast.chores.heal_queue import Wound
from holdfast.chores.repair import Repair
from holdfast.chores.replaced import FindReplaced
from holdfast.chores.rescheme import Rescheme
from holdfast.cluster.fences import Ticket
from holdfast.index.port import Expect, Outcome, Row, Unknown
from holdfast.node.leaving import Cost
from holdfast.objects.commit import Committer, Decided
from holdfast.objects.repeats import Try
from holdfast.packs.quorum import Verdict, WriteRound
from holdfast.packs.rewriting import Rewriter
from holdfast.packs.watched import WatchedIndex
from holdfast.recovery.journal import Journal
from holdfast.recovery.scratch import Scratch
from holdfast.scheme import Scheme
from tests.simulation.cluster_run import run_cluster_seed
from tests.simulation.run import SeedFailed, run_seed

SEEDS = 60
CLUSTER_SHARE = 10
"""A seed of a cluster costs about so many of a single node."""

Contexts = Sequence[AbstractContextManager[object]]


class Mutant(Struct, frozen=True):
    """One mistake; `plant` makes it for as long as its contexts are open. With `cluster`, only several nodes
    can make it. `caught_by` is a test below `tests` that turns red with it, where seeds hardly ever do."""

    name: str
    what: str
    plant: Callable[[], Contexts]
    cluster: bool = False
    caught_by: str = ""


def _acknowledge_early() -> Contexts:
    judge = WriteRound._judge

    def mutated(self: WriteRound, now: float) -> None:
        if self.verdict is None and self.durable:
            self.verdict = Verdict.ACKNOWLEDGE
        judge(self, now)

    return [patch.object(WriteRound, "_judge", mutated)]


def _low_floor() -> Contexts:
    judge = WriteRound._judge

    def mutated(self: WriteRound, now: float) -> None:
        self._floor = self._needed
        judge(self, now)

    return [patch.object(WriteRound, "_judge", mutated)]


def _no_let_go() -> Contexts:
    rooms = ("writing", "uploads", "claims")
    return [patch(f"holdfast.objects.{room}.not_let_go", lambda packs, owner: ()) for room in rooms]


def _unknown_is(*, committed: bool) -> Contexts:
    sort = Committer._sort

    def mutated(
        outcomes: Sequence[Outcome], places: Sequence[int], first: bool
    ) -> tuple[dict[int, Decided], list[int]]:
        known = [(one, at) for one, at in zip(outcomes, places, strict=True) if not isinstance(one, Unknown)]
        decided, open_ = sort([one for one, _ in known], [at for _, at in known], first)
        decided |= {at: Decided(committed, first) for at in places if at not in decided}
        return decided, open_

    return [patch.object(Committer, "_sort", staticmethod(mutated))]


def _no_shares() -> Contexts:
    scan = Collect._scan

    async def mutated(self: Collect, start: bytes, end: bytes, limit: int) -> list[Row]:
        return [] if start.startswith(b"share/") else await scan(self, start, end, limit)

    return [patch.object(Collect, "_scan", mutated)]


def _closed_unread() -> Contexts:
    async def mutated(self: Repair, pack: PackId, wound: Wound) -> None:
        if wound.changed:
            self.repaired += 1
            self.observer(pack, wound.told)

    return [patch.object(Repair, "_prove", mutated)]


def _not_read_back() -> Contexts:
    carry_out = Rewriter._carry_out

    async def nothing(*_: object) -> None:
        return

    async def mutated(self: Rewriter, *how: object) -> object:
        twin = copy(self)
        twin._read_back = nothing  # type: ignore[method-assign]
        return await carry_out(twin, *how)  # type: ignore[arg-type]

    return [patch.object(Rewriter, "_carry_out", mutated)]


def _stale_scheme() -> Contexts:
    async def mutated(self: Compact, scheme: Scheme, found: list[Candidate]) -> list[Candidate]:
        return found

    return [patch.object(Compact, "_still_of", mutated)]


def _nothing_deleted() -> Contexts:
    apply = Scratch.apply

    def mutated(self: Scratch, revision: int, puts: Sequence[tuple[bytes, bytes]], deletes: object) -> None:
        apply(self, revision, puts, ())

    return [patch.object(Scratch, "apply", mutated)]


async def _costs_nothing(*_: object) -> Cost:
    return Cost()


async def _nothing_to_change(*_: object) -> bool:
    return False


class _VoidTicket(Ticket):
    def __init__(self, expects: tuple[Expect, ...] = ()) -> None:
        super().__init__(())


MUTANTS = (
    Mutant(
        "gone",
        "what a write under way placed on a store that had gone is not looked for again",
        lambda: [patch.object(FindReplaced, "counted", lambda self, homes: None)],
        caught_by="simulation/test_store_gone.py::test_what_went_with_a_store_during_an_upload_is_written_again",
    ),
    Mutant("early", "a write is acknowledged with its first durable shard", _acknowledge_early),
    Mutant("floor", "a write is acknowledged with as many shards as a read needs", _low_floor),
    Mutant(
        "let-go",
        "who makes bytes his own does not ask whether they were let go",
        _no_let_go,
        caught_by="unit/test_objects_auditing.py::test_a_large_body_of_which_one_pack_was_given_up_is_turned_away",
    ),
    Mutant(
        "names",
        "a rewrite uses one attempt number again and again",
        lambda: [patch.object(Rewriter, "_new_attempt", lambda self: 1)],
    ),
    Mutant("unknown-yes", "an unknown outcome is taken for committed", partial(_unknown_is, committed=True)),
    Mutant(
        "unknown-no",
        "an unknown outcome is taken for refused",
        partial(_unknown_is, committed=False),
        caught_by="unit/test_objects_faults.py::test_the_answer_is_true_whichever_commit_goes_wrong",
    ),
    Mutant(
        "blocks",
        "blocks that are read are not verified",
        lambda: [patch("holdfast.packs.reading.wrong_blocks", lambda *_: [])],
    ),
    Mutant(
        "binding",
        "a block of one shard passes for one of another",
        lambda: [
            patch(f"holdfast.packs.{room}.binding", lambda pack, shard, attempt: 1)
            for room in ("rows", "writing", "found")
        ],
        caught_by="unit/test_corruption_shards.py::test_every_region_of_a_shard_spoiled_in_one_in_m_and_in_more_shards",
    ),
    Mutant(
        "heal",
        "a repair is closed without reading all of the pack",
        _closed_unread,
        caught_by="unit/test_chores_heal.py::test_a_store_that_flips_bits_after_the_write_is_not_believed",
    ),
    Mutant(
        "read-back",
        "a rewrite does not read back what it wrote",
        _not_read_back,
        caught_by="unit/test_chores_heal.py::test_a_store_that_drops_what_it_acknowledged_is_not_believed",
    ),
    Mutant(
        "image",
        "an old image of a disk is taken back",
        lambda: [patch("holdfast.stores.identity._is_older", lambda *_: False)],
    ),
    Mutant("shares", "a pack is buried although copies share it", _no_shares),
    Mutant(
        "sweep",
        "dead shards go before the journal says that they are dead",
        lambda: [patch.object(Journal, "covers", lambda self, revision: True)],
    ),
    Mutant(
        "grave",
        "a grave does not wait for a row whose commit is in doubt",
        lambda: [
            patch.object(WatchedIndex, "in_doubt", lambda self, pack: False),
            patch("holdfast.chores.strays.FindStrays.is_awaited", lambda self, pack: False),
        ],
        caught_by="unit/test_packs_watched.py::test_a_dead_pack_whose_commit_lands_late_stays_dead",
    ),
    Mutant(
        "remove",
        "a store is removed without asking what it holds",
        lambda: [patch("holdfast.node.store_commands.cost_of_leaving", _costs_nothing)],
    ),
    Mutant(
        "scheme",
        "packs are not given another scheme",
        lambda: [patch.object(Rescheme, "_look", _nothing_to_change)],
    ),
    Mutant(
        "stale",
        "a pack is emptied under the scheme that it had when it was found",
        _stale_scheme,
        caught_by="unit/test_chores_compact.py",
    ),
    Mutant(
        "journal",
        "recovery does not follow what the journal says was deleted",
        _nothing_deleted,
        caught_by="unit/test_recovery_journal.py::test_all_rows_come_back_with_their_revisions_from_any_stores_but_m",
    ),
    Mutant(
        "overtaken",
        "a try that another one has overtaken is committed all the same",
        lambda: [patch.object(Try, "expects", lambda self: ())],
        cluster=True,
    ),
    Mutant(
        "fence",
        "a transaction that makes a pack does not expect its node's fence",
        lambda: [patch("holdfast.cluster.fences.Ticket", _VoidTicket)],
        cluster=True,
        caught_by="unit/test_cluster_fences.py",
    ),
)


PLANTED = "HOLDFAST_MUTANT"
"""Names the mutant that pytest is to plant when this module is its plug-in."""

_for_good = ExitStack()


def pytest_configure() -> None:
    """Plant a mutant for as long as pytest runs."""
    for context in _named(os.environ[PLANTED]).plant():
        _for_good.enter_context(context)


def _named(name: str) -> Mutant:
    return next(mutant for mutant in MUTANTS if mutant.name == name)


def is_caught(mutant: Mutant) -> bool:
    """Whether the test that is named beside a mutant fails with it."""
    command = [sys.executable, "-m", "pytest", "-qx", "-p", __spec__.name, f"tests/{mutant.caught_by}"]
    done = subprocess.run(command, env=os.environ | {PLANTED: mutant.name}, capture_output=True, check=False)
    return done.returncode == pytest.ExitCode.TESTS_FAILED


class Found(Struct):
    """What came of one mutant: the seeds that found it, of so many, in so much processor time."""

    seeds: list[int]
    tried: int = 0
    took_s: float = 0.0
    said: str = ""


def try_out(mutant: Mutant, seeds: Sequence[int], *, enough: int = 0) -> Found:
    """Which of these seeds find it; with `enough`, no more are tried once so many have."""
    found = Found([])
    run = run_cluster_seed if mutant.cluster else run_seed
    began = time.process_time()
    with ExitStack() as planted:
        for context in mutant.plant():
            planted.enter_context(context)
        for seed in seeds:
            found.tried += 1
            try:
                run(seed)
            except SeedFailed as failed:
                found.seeds.append(seed)
                found.said = found.said or str(failed).partition("\n")[0]
                if len(found.seeds) == enough:
                    break
    found.took_s = time.process_time() - began
    return found


def main(arguments: Sequence[str]) -> int:
    """Plants them all, or those named; 1 when one was not found."""
    seeds = int(arguments[0]) if arguments else SEEDS
    unfound = 0
    for mutant in MUTANTS:
        if arguments[1:] and mutant.name not in arguments[1:]:
            continue
        if mutant.caught_by:
            caught = is_caught(mutant)
            unfound += not caught
            told = f"{'' if caught else 'not '}caught by tests/{mutant.caught_by}"
            _tell(mutant, told)
            continue
        count = max(1, seeds // CLUSTER_SHARE) if mutant.cluster else seeds
        found = try_out(mutant, range(1, count + 1))
        unfound += not found.seeds
        told = f"not found in {found.tried} seeds, {found.took_s:.0f} s"
        if found.seeds:
            cost_s = found.took_s / len(found.seeds)
            told = f"{len(found.seeds)} of {found.tried} seeds, {cost_s:.1f} s a find; {found.said[:150]}"
        _tell(mutant, told)
    return 1 if unfound else 0


def _tell(mutant: Mutant, told: str) -> None:
    sys.stdout.write(f"{mutant.name:12} {mutant.what}\n{'':12} {told}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
