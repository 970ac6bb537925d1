"""Who is well: what live traffic and probes say of each store."""

from holdfast.health.monitor import StoreHealth
from holdfast.health.observing import HealthObserver
from holdfast.health.record import StoreCounts, StoreEvent
from holdfast.health.transitions import StoreState

__all__ = ["HealthObserver", "StoreCounts", "StoreEvent", "StoreHealth", "StoreState"]
