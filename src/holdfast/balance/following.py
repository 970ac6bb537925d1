"""Asks the nodes themselves who they are, and remembers it.

One node is asked four times a second, the same one as long as it answers; then another of those that are
known, then the seeds of the file. What must hold: only a node that proves that it knows the balancer's
secret is believed, and only one that such a node told of is ever sent a request; when nobody answers, what
was told last stays, over a restart of the balancer, too; and of another cluster than the one told of first
nothing is taken.
"""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from holdfast.balance.patience import KNOWN_S
from holdfast.balance.view import Endpoint, View, split_address, view_of
from holdfast.base.errors import Damaged, InvalidInput, Unavailable
from holdfast.base.randomness import Randomness
from holdfast.base.sealed import NOT_JSON, is_spoiled, seal
from holdfast.cluster.members import LOOK_EVERY_S as MEMBERS_LOOK_EVERY_S
from holdfast.cluster.telling import (
    MEMBERS_PATH,
    NONCE_BYTES,
    PROOF_HEADER,
    Told,
    ToldNode,
    believed,
    question,
)
from holdfast.wire.asking import get

LOOK_EVERY_S = 0.25
ASK_S = 0.5
"""A node that takes longer is passed over, so that one that hangs delays what the others tell by little."""
assert MEMBERS_LOOK_EVERY_S + LOOK_EVERY_S < KNOWN_S
FORMAT = 1


class Kept(Struct, frozen=True):
    """`view.json`: what was told last, and by which address."""

    format: int
    cluster: str
    told_by: str
    asked: str
    nodes: tuple[ToldNode, ...]


def view_told(nodes: tuple[ToldNode, ...]) -> View:
    """The endpoints of what was told. When every node drains, none is taken for draining: somebody has to
    serve. One that has not said where it serves, or says what is no address, is left out."""
    endpoints = []
    everybody = all(node.draining for node in nodes)
    for node in nodes:
        try:
            host, port = split_address(node.client.partition("://")[2])
        except InvalidInput:
            continue
        draining = node.draining and not everybody
        endpoints.append(Endpoint(host, port, node.name, node.region, node.zone, draining))
    return view_of(endpoints)


def read_kept(path: Path) -> Kept | None:
    """What `view.json` says; None where there is none. Raises Damaged."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Damaged(f"{path} cannot be read: {error.strerror}.") from None
    try:
        if is_spoiled(raw):
            raise Damaged(f"{path} is damaged, its checksum does not fit.")
        kept = msgspec.json.decode(raw, type=Kept)
        if kept.format != FORMAT:
            raise Damaged(f"{path} has format {kept.format}, which this version does not know.")
    except NOT_JSON as error:
        raise Damaged(f"{path} cannot be read: {error}") from None
    return kept


class Following:
    """The nodes as they tell of themselves. `tell` is told what a person should know, each thing once."""

    def __init__(self, path: Path, randomness: Randomness, tell: Callable[[str, str], None]) -> None:
        self._path = path
        self._randomness = randomness
        self._tell = tell
        self._kept: Kept | None = None
        self._asked = ""
        self._alone = False
        try:
            self._kept = read_kept(path)
        except Damaged as error:
            tell("kept", f"{error} The nodes are asked anew.")

    @property
    def view(self) -> View:
        """All nodes known now; none before anybody was believed."""
        return view_told(self._kept.nodes) if self._kept is not None else ()

    async def look(self, seeds: View, secret: str) -> None:
        """Ask whoever answers first."""
        refusals = []
        for address in self._candidates(seeds):
            try:
                told = await self._ask(address, secret)
            except (InvalidInput, Damaged) as error:
                self._tell(address, f"{address} is not believed: {error}")
            except Unavailable as error:
                refusals.append(str(error))
            else:
                self._asked = address
                self._take(told, address)
                self._tell(address, "")
                if self._alone:
                    self._tell("seeds", f"{address} tells again who the nodes are.")
                self._alone = False
                return
        if not self._alone:
            stays = "what is known of the nodes stays" if self._kept is not None else "no node is known yet"
            self._tell("seeds", f"Nobody tells who the nodes are, so {stays}. {' '.join(refusals)}".rstrip())
        self._alone = True

    def _candidates(self, seeds: View) -> list[str]:
        known = [_written(one.host, one.port) for one in (*self.view, *seeds)]
        return list(dict.fromkeys([self._asked, *known] if self._asked in known else known))

    async def _ask(self, address: str, secret: str) -> Told:
        nonce = self._randomness.token(NONCE_BYTES).hex()
        url = f"http://{address}{MEMBERS_PATH}?nonce={nonce}"
        status, body = await get(url, timeout_s=ASK_S, headers={PROOF_HEADER: question(secret, nonce)})
        if status == 403:
            raise InvalidInput(
                "it does not take the secret of this balancer:",
                hint="`holdfast balance secret` prints the right one from the cluster's secret file (a node "
                "that is alone, or of a version before seeds, takes none).",
            )
        if status != 200:
            raise Unavailable(f"{address} answers {status}.")
        told = believed(secret, nonce, body)
        if self._kept is not None and told.cluster != self._kept.cluster:
            raise InvalidInput(
                f"it belongs to cluster {told.cluster}, not to {self._kept.cluster}:",
                hint="take it out of seeds; to follow it instead, stop the balancer and delete "
                f"{self._path}.",
            )
        if not view_told(told.nodes):
            raise Unavailable(f"{address} knows no node.")
        return told

    def _take(self, told: Told, address: str) -> None:
        kept = Kept(FORMAT, told.cluster, told.told_by, address, told.nodes)
        if kept == self._kept and self._path.exists():
            with contextlib.suppress(OSError):
                os.utime(self._path)
            return
        self._kept = kept
        temporary = self._path.with_name(f".{self._path.name}.new")
        try:
            temporary.unlink(missing_ok=True)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(seal(kept))
                file.flush()
                os.fsync(descriptor)
            temporary.replace(self._path)
        except OSError as error:
            self._tell(
                "kept", f"{self._path} cannot be written, so a restart forgets the nodes: {error.strerror}."
            )


def _written(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
