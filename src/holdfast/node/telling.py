"""`/-/members`: what a node tells a balancer about all nodes.

What must hold: nothing is told to who does not prove that it knows a secret of balancers; and a node that is
cut off from the index, so that what it knows may be old, does not tell.
"""

from collections.abc import Mapping, Sequence

from holdfast.cluster.members import Member
from holdfast.cluster.telling import FORMAT, MEMBERS_PATH, PROOF_HEADER, Told, ToldNode, answer, is_proven
from holdfast.node.joining import Joining
from holdfast.s3.face import AdminAnswer, AdminRequest, Route, route_at_once


def told_node(member: Member) -> ToldNode:
    """What a balancer needs to know of one."""
    row = member.row
    return ToldNode(member.name, row.client, row.region, row.zone, row.draining or row.stopping)


def telling_routes(joining: Joining, secrets: Sequence[str]) -> Mapping[str, Route]:
    """The internal path of a node in a cluster. `secrets` is looked at anew for each question."""

    def tell(request: AdminRequest) -> AdminAnswer:
        nonce = request.query.get("nonce", "")
        proof = request.headers.get(PROOF_HEADER, "")
        secret = next((one for one in secrets if is_proven(one, nonce, proof)), None)
        if secret is None:
            return AdminAnswer(403, b'{"reason":"the secret of balancers is another"}')
        if not joining.is_ready:
            return AdminAnswer(503, b'{"reason":"the index does not answer"}')
        nodes = tuple(told_node(joining.members[name]) for name in sorted(joining.members))
        told = Told(FORMAT, joining.identity.cluster, joining.name, nodes)
        return AdminAnswer(200, answer(secret, nonce, told))

    return {MEMBERS_PATH: route_at_once(tell, frozenset({"GET"}))}
