"""The tree of failure domains, and where shards go in it. Pure."""

from holdfast.topology.placement import check, place, survived
from holdfast.topology.tree import LEVELS, Level, Location, Topology

__all__ = ["LEVELS", "Level", "Location", "Topology", "check", "place", "survived"]
