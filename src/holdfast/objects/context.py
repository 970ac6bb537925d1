"""What all operations on objects share: the parts they stand on, and the queues they stand in."""

from concurrent.futures import ThreadPoolExecutor

from holdfast.base.clock import Clock
from holdfast.base.randomness import Randomness
from holdfast.index.port import Index
from holdfast.objects.commit import Committer
from holdfast.objects.heads import Heads
from holdfast.objects.receiving import Receiver
from holdfast.objects.settings import ObjectsSettings
from holdfast.objects.turns import ByteBudget, Turns
from holdfast.packs.model import PackStorage


class Context:
    """Built once for each service."""

    def __init__(
        self,
        index: Index,
        packs: PackStorage,
        clock: Clock,
        randomness: Randomness,
        settings: ObjectsSettings,
    ) -> None:
        self.index = index
        self.packs = packs
        self.clock = clock
        self.randomness = randomness
        self.settings = settings
        limits, patience = settings.limits, settings.patience
        self.committer = Committer(index, clock, randomness, patience)
        self.heads = Heads(index, self.committer, Turns(patience.conflict_s), patience, settings.learn)
        self.budget = ByteBudget(limits.inflight_bytes, patience.memory_s)
        self._pool = (
            ThreadPoolExecutor(limits.hashing_threads, thread_name_prefix="holdfast-digest")
            if limits.hashing_threads
            else None
        )
        self.receiver = Receiver(packs, clock, self._pool, self.budget, limits.inflight_packs)

    def now_ms(self) -> int:
        """The time that versions are labelled with."""
        return int(self.clock.wall() * 1000)

    def close(self) -> None:
        """Let the digest threads go; they finish what they hold."""
        if self._pool is not None:
            self._pool.shutdown(wait=False)
