"""`holdfast serve`: runs a node and prints what a person needs to use it."""

import logging
import sys
from collections.abc import Mapping

from holdfast import __version__
from holdfast.base.clock import Clock
from holdfast.base.randomness import Randomness
from holdfast.cli.output import banner, console, show
from holdfast.node.config import Config, credentials_given
from holdfast.node.credentials import FILE_NAME
from holdfast.node.node import Node
from holdfast.node.running import run_node


def serve_until_stopped(
    config: Config, environment: Mapping[str, str], clock: Clock, randomness: Randomness
) -> None:
    """Run a node; return when it has stopped. Raises what stands in its way."""
    kept = _kept(config, environment)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    out = console()

    def ready(node: Node) -> None:
        show(
            out,
            banner(
                version=__version__,
                endpoint=node.endpoint,
                region=config.region,
                credentials=node.credentials,
                kept=kept,
                scheme=node.scheme.name,
                promise=node.promise,
                remarks=node.remarks(),
                private=out.is_terminal,
            ),
        )

    def stopping() -> None:
        show(out, "Draining. Ctrl-C again stops at once.")

    run_node(config, environment, clock, randomness, on_ready=ready, on_stopping=stopping)
    show(out, "Stopped.")


def _kept(config: Config, environment: Mapping[str, str]) -> str:
    """Where the credentials are from."""
    if credentials_given(environment) is not None:
        return "the environment"
    if config.cluster is not None:
        return f"every node: they are made of the secret in {config.cluster.secret_file}"
    return str(config.data / FILE_NAME)
