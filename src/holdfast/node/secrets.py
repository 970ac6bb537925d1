"""The cluster's secret while the node runs: what is made of it, and its file, which is read again and again.

A cluster changes its secret without a node being started anew: each file names both for a while. What must
hold: what was known goes on to count until the file says otherwise, and a file that cannot be used, or that
names none of the secrets known so far, changes nothing; no secret is dropped before the cluster's row was
told; and whoever holds a list from here sees the change, since lists are changed in place.
"""

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from holdfast.base.clock import Clock
from holdfast.base.errors import HoldfastError, InvalidInput
from holdfast.base.randomness import Randomness
from holdfast.cluster.telling import balancer_secret
from holdfast.index.sqlite.runner import Runner, ThreadRunner
from holdfast.node.config import Config, credentials_given
from holdfast.node.config_cluster import read_secrets
from holdfast.node.credentials import Credentials, from_secret, obtain
from holdfast.stores.peer import Roots

LOOK_EVERY_S = 2.0

Prove = Callable[[tuple[bytes, ...]], Awaitable[None]]
"""Has the cluster's row say which secrets are known. Raises HoldfastError."""


class Secrets:
    """Of a node that is alone `known` is empty. `credentials` are those that were given or found, and are the
    only ones where they are not `made` of the cluster's secret. `told_balancers` is what the node's file says
    that balancers are known by."""

    def __init__(
        self,
        known: tuple[bytes, ...],
        credentials: Credentials,
        told_balancers: str,
        *,
        made: bool,
    ) -> None:
        self.known = known
        self.credentials = credentials
        self.access: dict[str, str] = {}
        """Who may ask for what is S3's, with what they sign: the first one's before the others'."""
        self.balancers: list[str] = []
        self._made = made
        self._told_balancers = told_balancers
        self._roots: Roots | None = None
        self._spread()

    def roots(self, cluster: str) -> Roots:
        """What peers know each other by."""
        if self._roots is None:
            self._roots = Roots(self.known, cluster)
        return self._roots

    def change(self, known: tuple[bytes, ...]) -> None:
        """Know these from now on."""
        assert known, "a cluster has a secret"
        self.known = known
        if self._made:
            self.credentials = from_secret(known[0])
        self._spread()

    def _spread(self) -> None:
        found = [from_secret(secret) for secret in self.known] if self._made else [self.credentials]
        _become(self.access, {one.access_key_id: one.secret_access_key for one in found})
        told = self._told_balancers
        self.balancers[:] = [told] if told else [balancer_secret(secret) for secret in self.known]
        if self._roots is not None:
            self._roots.change(self.known)


def open_secrets(config: Config, environment: Mapping[str, str], randomness: Randomness) -> Secrets:
    """Those of a node that starts. Raises InvalidInput."""
    known = read_secrets(config.cluster.secret_file) if config.cluster is not None else ()
    credentials = obtain(config.data, environment, randomness, secret=known[0] if known else None)
    made = bool(known) and credentials_given(environment) is None
    return Secrets(known, credentials, config.balancer_secret, made=made)


async def watch_file(
    path: Path,
    secrets: Secrets,
    prove: Prove,
    clock: Clock,
    tell: Callable[[str], None],
    runner: Runner | None = None,
) -> None:
    """Follow the file until cancelled. `tell` is told each thing once."""
    runner = runner or ThreadRunner("secret")
    said = ""
    try:
        while True:
            await clock.sleep(LOOK_EVERY_S)
            try:
                # A folder that hangs must not hold the node.
                found = await runner.submit(lambda: read_secrets(path))
                if found == secrets.known:
                    said = ""
                    continue
                await _take(found, secrets, prove)
            except (HoldfastError, OSError) as error:  # a disk may fail to read what it opened
                if str(error) != said:
                    said = str(error)
                    tell(f"the cluster's secret stays as it is: {error}")
            else:
                said = ""
                tell(f"{path} was read anew: {_shown(len(found))}")
    finally:
        runner.close()


async def _take(found: tuple[bytes, ...], secrets: Secrets, prove: Prove) -> None:
    if not set(found) & set(secrets.known):
        raise InvalidInput(
            "the file names none of the secrets that are known so far:",
            hint='let it name both for a while, the other in a line that begins with "also ".',
        )
    # What is new is believed at once; what goes counts until the cluster's row says that it went.
    secrets.change(found + tuple(secret for secret in secrets.known if secret not in found))
    await prove(found)
    secrets.change(found)


def _shown(count: int) -> str:
    return "one secret counts" if count == 1 else f"{count} secrets count, the first of them is used"


def _become(changed: dict[str, str], wanted: Mapping[str, str]) -> None:
    """Never without an entry that stays."""
    for name in changed.keys() - wanted.keys():
        del changed[name]
    changed.update(wanted)
