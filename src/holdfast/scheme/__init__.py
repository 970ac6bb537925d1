"""How bytes are protected: `mirror-N`, `rs-K-M`, and the RAID names people know. Pure."""

from holdfast.scheme.scheme import K_MAX, M_MAX, MIRROR_MAX, Scheme, parse_scheme

__all__ = ["K_MAX", "MIRROR_MAX", "M_MAX", "Scheme", "parse_scheme"]
