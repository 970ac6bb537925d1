"""The S3 server: the house's HTTP/1.1 server with the S3 face behind it."""

from collections.abc import Sequence

from holdfast.base.clock import Clock
from holdfast.base.randomness import Randomness
from holdfast.objects.model import ObjectService
from holdfast.s3.face import Face, Routes
from holdfast.s3.observing import Describing, RequestObserver
from holdfast.s3.sigv4 import Credentials
from holdfast.wire.exchange import Limits
from holdfast.wire.server import Server


class S3Server(Server):
    """One endpoint. `port` 0 takes a free one. `base_domains` allow `bucket.<domain>` as host; bucket
    names in the path always work. Whoever says one of `balancer_secrets` may name requests."""

    def __init__(
        self,
        service: ObjectService,
        credentials: Credentials,
        clock: Clock,
        randomness: Randomness,
        *,
        host: str = "127.0.0.1",
        port: int = 9000,
        region: str = "us-east-1",
        base_domains: tuple[str, ...] = (),
        limits: Limits | None = None,
        routes: Routes | None = None,
        observer: RequestObserver | None = None,
        balancer_secrets: Sequence[str] = (),
    ) -> None:
        face = Face(
            service,
            credentials,
            clock,
            randomness,
            region=region,
            base_domains=base_domains,
            routes=routes or {},
            balancer_secrets=balancer_secrets,
        )
        super().__init__(
            face,
            clock,
            host=host,
            port=port,
            hint="choose another with --port.",
            limits=limits,
            observer=Describing(observer) if observer is not None else None,
        )
