"""What `/-/metrics` says of a node's part in its cluster."""

from collections.abc import Iterable

from holdfast.node.metrics import Family, gauge, one
from holdfast.node.secrets import Secrets


def cluster_families(secrets: Secrets) -> Iterable[Family]:
    """Nothing of a node that is alone."""
    if not secrets.known:
        return
    yield gauge(
        "holdfast_cluster_secrets",
        "Secrets of the cluster that count at this node: 2 while the cluster changes its secret.",
        one(len(secrets.known)),
    )
