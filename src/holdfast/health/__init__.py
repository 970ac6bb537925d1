"""Who is well: what live traffic and probes say of each store."""

from holdfast.health.monitor import StoreCounts, StoreEvent, StoreHealth, StoreState
from holdfast.health.observing import HealthObserver

__all__ = ["HealthObserver", "StoreCounts", "StoreEvent", "StoreHealth", "StoreState"]
