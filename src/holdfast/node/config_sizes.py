"""Sizes as a person writes them. Pure."""

import re

from holdfast.base.errors import InvalidInput

_SIZE = re.compile(r"([0-9]{1,12})\s*(B|KiB|MiB|GiB|TiB)?\Z")
_UNITS = {None: 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def read_size(value: object) -> int:
    """Bytes: a whole number, or text with a unit."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    found = _SIZE.match(value) if isinstance(value, str) else None
    if not found:
        raise InvalidInput(f"{value!r} is not a size:", hint='bytes, or text as "256 MiB".')
    return int(found[1]) * _UNITS[found[2]]
