"""Finds the running node and asks it, over the same signed HTTP that everybody uses.

The node leaves a small file in its data folder that says where it listens; the credentials are there, too,
or in the environment. What must hold: no node, a dead one, and one that does not know our credentials are
three different sentences, and none of them is a traceback.
"""

import hashlib
import hmac
import http.client
import os
from contextlib import closing
from datetime import UTC, datetime
from urllib.parse import urlsplit

from holdfast.base.clock import Clock
from holdfast.base.errors import Busy, HoldfastError, InvalidInput, Unavailable
from holdfast.node.config import Config
from holdfast.node.config_cluster import read_secrets
from holdfast.node.credentials import Credentials, find
from holdfast.node.runtime import read_runtime
from holdfast.node.stores import error_of

TIMEOUT_S = 30.0
_START = "Start it with `holdfast serve`"


def read_credentials(config: Config) -> Credentials:
    """Those of the node with this configuration, whether it runs or not. Raises InvalidInput."""
    secret = read_secrets(config.cluster.secret_file)[0] if config.cluster is not None else None
    credentials = find(config.data, os.environ, secret=secret)
    if credentials is None:
        raise InvalidInput(
            f"There are no credentials in {config.data}:",
            hint="name the node's file with --config, if it has one (those of a cluster are made of its "
            "secret), or set HOLDFAST_ACCESS_KEY_ID and HOLDFAST_SECRET_ACCESS_KEY as for the node.",
        )
    return credentials


class NodeClient:
    """Asks the node that runs on a data folder, or another of its cluster at `endpoint`."""

    def __init__(self, config: Config, clock: Clock, endpoint: str = "") -> None:
        runtime = read_runtime(config.data)
        if runtime is None:
            raise Unavailable(
                f"No node is running on {config.data}.",
                hint=f"{_START}, or name its data folder: with --data, or as data in its configuration file.",
            )
        self._credentials = read_credentials(config)
        self.endpoint = endpoint or runtime.endpoint
        self._region = runtime.region
        self._clock = clock

    def ask(
        self,
        path: str,
        query: str = "",
        *,
        method: str = "GET",
        timeout_s: float = TIMEOUT_S,
        also: int = 200,
    ) -> bytes:
        """The answer to one request. `also` is another status whose content is an answer, and no refusal.
        Raises Unavailable, Busy, InvalidInput."""
        address = urlsplit(self.endpoint)
        assert address.hostname is not None
        connection = http.client.HTTPConnection(address.hostname, address.port, timeout=timeout_s)
        with closing(connection):
            try:
                target = f"{path}?{query}" if query else path
                connection.request(method, target, headers=self._signed(method, address.netloc, path, query))
                answer = connection.getresponse()
                body = answer.read()
            except TimeoutError:
                raise Busy(f"The node at {self.endpoint} did not answer in {timeout_s:g} s.") from None
            except (OSError, http.client.HTTPException) as error:
                raise Unavailable(
                    f"The node at {self.endpoint} does not answer ({str(error) or type(error).__name__}).",
                    hint=f"{_START}.",
                ) from None
        if answer.status not in (200, also):
            raise _refused(answer.status, body)
        return body

    def _signed(self, method: str, host: str, path: str, query: str) -> dict[str, str]:
        """Headers with AWS Signature Version 4 for an empty body.

        https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
        """
        moment = datetime.fromtimestamp(self._clock.wall(), UTC).strftime("%Y%m%dT%H%M%SZ")
        body = hashlib.sha256(b"").hexdigest()
        headers = {"host": host, "x-amz-content-sha256": body, "x-amz-date": moment}
        names = ";".join(headers)
        canonical = "\n".join(
            [method, path, query, *(f"{name}:{value}" for name, value in headers.items()), "", names, body]
        )
        scope = f"{moment[:8]}/{self._region}/s3/aws4_request"
        to_sign = "\n".join(
            ["AWS4-HMAC-SHA256", moment, scope, hashlib.sha256(canonical.encode()).hexdigest()]
        )
        key = b"AWS4" + self._credentials.secret_access_key.encode()
        for part in scope.split("/"):
            key = hmac.digest(key, part.encode(), "sha256")
        signature = hmac.digest(key, to_sign.encode(), "sha256").hex()
        return headers | {
            "authorization": f"AWS4-HMAC-SHA256 Credential={self._credentials.access_key_id}/{scope}, "
            f"SignedHeaders={names}, Signature={signature}"
        }


def _refused(status: int, body: bytes) -> HoldfastError:
    if (told := error_of(body)) is not None:
        return told
    if status in (401, 403):
        return InvalidInput(
            "The node does not know these credentials.",
            hint="Set HOLDFAST_ACCESS_KEY_ID and HOLDFAST_SECRET_ACCESS_KEY as for the node.",
        )
    text = " ".join(body.decode(errors="replace").split())[:300]
    return Unavailable(f"The node answered {status}: {text}")
