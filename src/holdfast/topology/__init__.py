"""The tree of failure domains, where shards go in it, and what shall be survived. Pure."""

from holdfast.topology.placement import check, place, survived
from holdfast.topology.survive import ANY_REGION, Survive, keeps, parse_survive
from holdfast.topology.tree import LEVELS, Level, Location, Topology

__all__ = [
    "ANY_REGION",
    "LEVELS",
    "Level",
    "Location",
    "Survive",
    "Topology",
    "check",
    "keeps",
    "parse_survive",
    "place",
    "survived",
]
