"""How long a store that fell is left alone before it is used again. Pure.

A store that comes and goes costs more than one that is away: each time it goes, requests wait; each time it
comes, it is filled and read from. So its rest doubles with each fall. After its first fall a store that
failed is used as soon as it answers; one that was slow rests in any case, since a disk is not slow for a
moment. Falls are forgiven bit by bit: one for each `FORGIVEN_AFTER_S` of health.
"""

REST_FIRST_S = 10.0
HOLD_FIRST_S = 1.0
REST_MAX_S = 600.0
FORGIVEN_AFTER_S = 60.0
FALLS_MAX = 11

assert HOLD_FIRST_S * 2 ** (FALLS_MAX - 2) < REST_MAX_S < REST_FIRST_S * 2 ** (FALLS_MAX - 1)


def rest_s(falls: int) -> float:
    """How long a slow store rests after so many falls."""
    return float(min(REST_FIRST_S * 2 ** max(0, falls - 1), REST_MAX_S))


def hold_s(falls: int) -> float:
    """How long a store that failed is held back although it answers."""
    return float(min(HOLD_FIRST_S * 2 ** (falls - 2), REST_MAX_S)) if falls > 1 else 0.0
