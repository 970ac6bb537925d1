"""What Envoy is started with. Everything that may change later lies in files that this names.

Pure. The administration interface is a socket in the balancer's own folder, which nobody else may enter: what
is asked there can stop the balancer, and shows what it is known by.
"""

from pathlib import Path
from typing import NamedTuple

from holdfast.balance.nodes_cluster import TYPES, Json, from_file
from holdfast.balance.settings import Settings


class Files(NamedTuple):
    """What lies in a balancer's folder."""

    directory: Path

    @property
    def bootstrap(self) -> Path:
        return self.directory / "bootstrap.json"

    @property
    def listeners(self) -> Path:
        return self.directory / "listeners.json"

    @property
    def clusters(self) -> Path:
        return self.directory / "clusters.json"

    @property
    def endpoints(self) -> Path:
        return self.directory / "endpoints.json"

    @property
    def certificate(self) -> Path:
        return self.directory / "certificate.json"

    @property
    def view(self) -> Path:
        return self.directory / "view.json"

    @property
    def admin(self) -> Path:
        return self.directory / "admin.sock"

    @property
    def log(self) -> Path:
        return self.directory / "envoy.log"

    @property
    def lock(self) -> Path:
        return self.directory / "lock"


def bootstrap(settings: Settings, files: Files) -> Json:
    """The part that needs a restart to change. Envoy runs in the folder: a socket's path may not be long."""
    return {
        "node": {
            "id": "balancer",
            "cluster": "holdfast",
            "locality": {"region": settings.region, "zone": settings.zone},
        },
        "admin": {"address": {"pipe": {"path": files.admin.name, "mode": 0o600}}},
        "dynamic_resources": {
            "lds_config": from_file(str(files.listeners)),
            "cds_config": from_file(str(files.clusters)),
        },
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": {
                        "@type": f"{TYPES}envoy.extensions.resource_monitors."
                        "downstream_connections.v3.DownstreamConnectionsConfig",
                        "max_active_downstream_connections": settings.connections_max,
                    },
                }
            ]
        },
    }


def resources(*found: Json) -> Json:
    """The content of a file that Envoy watches."""
    return {"resources": list(found)}
