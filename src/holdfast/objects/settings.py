"""What can be set about objects: limits, patience, defaults. All have a default that suits one node."""

from collections.abc import Callable

from msgspec import Struct

from holdfast.base.errors import InvalidInput
from holdfast.objects.model import BODY_BYTES_MAX, OBJECT_BYTES_MAX, PART_BYTES_MIN
from holdfast.packs.model import PACK_BYTES_MAX
from holdfast.scheme import Scheme
from holdfast.topology import Survive


class ObjectsLimits(Struct, frozen=True, kw_only=True):
    """How much of everything. Bytes, unless the name says otherwise."""

    body_bytes_max: int = BODY_BYTES_MAX
    object_bytes_max: int = OBJECT_BYTES_MAX
    part_bytes_min: int = PART_BYTES_MIN
    """S3's own limits; only tests have a reason to lower them."""
    inflight_bytes: int = 128 << 20
    """What the large bodies of all requests together may hold in memory, encoding apart."""
    inflight_packs: int = 2
    """Packs that one request has under way at once."""
    inline_bytes_max: int = 32 << 10
    """Extents and parts that take more than this in a head row move to a table in a pack."""
    hashing_threads: int = 2
    """Threads for the digests of large bodies; with 0 the loop does it, a MiB at a time."""

    def __post_init__(self) -> None:
        assert self.inflight_bytes >= PACK_BYTES_MAX, "a single pack must fit"
        assert self.inflight_packs >= 1


class ObjectsPatience(Struct, frozen=True, kw_only=True):
    """How long to try, in seconds, before the client is told to come back."""

    unknown_s: float = 10.0
    """To find out how a commit ended. Then: 503, outcome unknown."""
    conflict_s: float = 20.0
    """To get past other writers of the same key."""
    memory_s: float = 10.0
    """To wait for a share of `inflight_bytes`."""
    backoff_first_s: float = 0.002
    backoff_last_s: float = 0.25
    """Between attempts: doubles from the first to the last, of which a random half to whole is waited."""


def any_scheme(scheme: Scheme) -> None:
    """Refuses nothing: for those who have no stores to count."""


def as_it_is(scheme: Scheme) -> Scheme:
    """For those whose default fits."""
    return scheme


def choose_none(survive: Survive) -> Scheme:
    """For those who know no stores."""
    raise InvalidInput("There are no stores to choose a scheme for.")


def forget(bucket: str, scheme: Scheme, survive: Survive | None) -> None:
    """For those whose packs have no use for it."""


class ObjectsSettings(Struct, frozen=True, kw_only=True):
    """Everything objects need to be told.

    `stores` is how many stores RAID aliases spread over; `check_scheme` raises InvalidInput for a scheme
    that they do not suffice for. `fit_default` is what becomes of the default, given the stores that there
    are now; `choose_scheme` is the scheme that survives something on them, or raises InvalidInput with what
    is missing. `learn` is told what each bucket (by its nonce) has to survive, before anything is written.
    """

    default_scheme: str
    stores: Callable[[], int]
    check_scheme: Callable[[Scheme], None] = any_scheme
    fit_default: Callable[[Scheme], Scheme] = as_it_is
    choose_scheme: Callable[[Survive], Scheme] = choose_none
    learn: Callable[[str, Scheme, Survive | None], None] = forget
    region: str = "us-east-1"
    limits: ObjectsLimits = ObjectsLimits()
    patience: ObjectsPatience = ObjectsPatience()
