"""The wire from measured stores to their health: adds the time, knows nothing else."""

from holdfast.base.clock import Clock
from holdfast.base.ids import StoreId
from holdfast.health.monitor import StoreHealth
from holdfast.stores.measured import MeasuredStore, Operation
from holdfast.stores.port import Store


class HealthObserver:
    """A `StoreObserver` and `CallWatch` that tells `StoreHealth`."""

    def __init__(self, health: StoreHealth, clock: Clock) -> None:
        self._health = health
        self._clock = clock

    def measure(self, store: Store) -> MeasuredStore:
        """`store`, observed from the beginning of each call to its end."""
        return MeasuredStore(store, self, self._clock, watch=self)

    def began(self, store: StoreId, operation: Operation, now: float) -> None:
        """One call begins."""
        self._health.began(store, operation, now)

    def observed(
        self,
        store: StoreId,
        operation: Operation,
        seconds: float,
        bytes_moved: int,
        error: BaseException | None,
    ) -> None:
        """One call has ended."""
        self._health.observed(store, operation, seconds, bytes_moved, error, self._clock.monotonic())
