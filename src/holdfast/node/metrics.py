"""The text that Prometheus reads: families of samples, rendered. Pure.

https://prometheus.io/docs/instrumenting/exposition_formats/ (text, version 0.0.4). Written by hand, because
the numbers are counted elsewhere already, and counting them twice would cost every request more than
the whole of this file does.
"""

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum

from msgspec import Struct

from holdfast.health.accounting import BOUNDS_S, Histogram

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = Mapping[str, str]


class Kind(Enum):
    """What a family measures."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Family(Struct, frozen=True):
    """Samples of one name. Of a histogram, each sample is a `Histogram`."""

    name: str
    kind: Kind
    help: str
    samples: Sequence[tuple[Labels, float | Histogram]]


def counter(name: str, text: str, samples: Sequence[tuple[Labels, float]]) -> Family:
    """What only ever grows."""
    assert name.endswith("_total")
    return Family(name, Kind.COUNTER, text, samples)


def gauge(name: str, text: str, samples: Sequence[tuple[Labels, float]]) -> Family:
    """What goes up and down."""
    return Family(name, Kind.GAUGE, text, samples)


def one(value: float) -> list[tuple[Labels, float]]:
    """The only sample of a family without labels."""
    return [({}, value)]


def render(families: Iterable[Family]) -> str:
    """The text of some families."""
    lines: list[str] = []
    for family in families:
        lines.append(f"# HELP {family.name} {_escape_help(family.help)}\n")
        lines.append(f"# TYPE {family.name} {family.kind.value}\n")
        for labels, value in family.samples:
            if isinstance(value, Histogram):
                lines += _histogram(family.name, labels, value)
            else:
                lines.append(f"{family.name}{_labels(labels)} {_number(value)}\n")
    return "".join(lines)


_BOUND_NAMES = [f"{bound:g}" for bound in BOUNDS_S]


def _histogram(name: str, labels: Labels, histogram: Histogram) -> Iterable[str]:
    inner = "".join(f'{key}="{_escape(value)}",' for key, value in labels.items())
    total = 0
    for bound, count in zip([*_BOUND_NAMES, "+Inf"], histogram.counts, strict=True):
        total += count
        yield f'{name}_bucket{{{inner}le="{bound}"}} {total}\n'
    yield f"{name}_sum{_labels(labels)} {_number(histogram.sum_s)}\n"
    yield f"{name}_count{_labels(labels)} {total}\n"


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{key}="{_escape(value)}"' for key, value in labels.items()) + "}"


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _escape_help(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")


def _number(value: float) -> str:
    return str(int(value)) if isinstance(value, int) else repr(value)
