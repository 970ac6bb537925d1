"""A scheme is two numbers: any k of k + m shards are enough.

`mirror-N` is k = 1, m = N - 1: every shard is a copy. `rs-K-M` is Reed-Solomon. The RAID names are
aliases that depend on how many stores there are, and are resolved once, when a bucket or a
configuration is read. What must hold: `parse_scheme(scheme.name) == scheme`.
"""

import re

from msgspec import Struct

from holdfast.base.errors import InvalidInput

K_MAX = 16
M_MAX = 6
MIRROR_MAX = M_MAX + 1


class Scheme(Struct, frozen=True, array_like=True):
    """`k` data shards and `m` redundant ones: survives the loss of any `m`."""

    k: int
    m: int

    @property
    def n(self) -> int:
        """Shards in all."""
        return self.k + self.m

    @property
    def name(self) -> str:
        """The canonical name: `mirror-3`, `rs-4-2`, `raid0` for a single unprotected copy."""
        if self.k == 1:
            return f"mirror-{self.n}" if self.m else "raid0"
        return f"rs-{self.k}-{self.m}"

    @property
    def bytes_factor(self) -> float:
        """Stored bytes per object byte, n/k."""
        return self.n / self.k

    def shrunk(self, stores: int) -> "Scheme | None":
        """The scheme for `stores` writable stores: m kept, k as large as fits; None below k = 1."""
        k = min(self.k, stores - self.m)
        return Scheme(k, self.m) if k >= 1 else None


_MIRROR = re.compile(r"mirror-([0-9]{1,2})\Z")
_RS = re.compile(r"rs-([0-9]{1,2})-([0-9]{1,2})\Z")


def parse_scheme(text: str, stores: int) -> Scheme:
    """The scheme called `text`, given `stores` stores for the RAID aliases to spread over.

    Raises InvalidInput with what would be right.
    """
    match text:
        case "raid0":
            return Scheme(1, 0)
        case "raid1" | "raid10":
            return Scheme(1, 1)
        case "raid5":
            return _reed_solomon(text, min(stores - 1, K_MAX), 1, stores)
        case "raid6":
            return _reed_solomon(text, min(stores - 2, K_MAX), 2, stores)
    if found := _MIRROR.match(text):
        copies = int(found[1])
        if not 2 <= copies <= MIRROR_MAX:
            raise InvalidInput(
                f"Scheme {text!r} is not possible:", hint=f"mirror-N takes N from 2 to {MIRROR_MAX}."
            )
        return Scheme(1, copies - 1)
    if found := _RS.match(text):
        return _reed_solomon(text, int(found[1]), int(found[2]), stores)
    raise InvalidInput(
        f"{text!r} is not a scheme.",
        hint="Say mirror-N, rs-K-M (as mirror-3, rs-4-2), or raid0, raid1, raid5, raid6, raid10.",
    )


def _reed_solomon(text: str, k: int, m: int, stores: int) -> Scheme:
    if text.startswith("raid") and k < 2:
        raise InvalidInput(f"Scheme {text} needs at least {m + 2} stores,", hint=f"there are {stores}.")
    if not (2 <= k <= K_MAX and 1 <= m <= M_MAX):
        raise InvalidInput(
            f"Scheme {text!r} is not possible:",
            hint=f"rs-K-M takes K from 2 to {K_MAX} and M from 1 to {M_MAX}.",
        )
    return Scheme(k, m)
