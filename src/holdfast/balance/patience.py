"""How long each waits for the one behind it, in seconds.

A node answers within its own patience, Envoy waits longer than a node, a client longer than Envoy: so that
whoever gives up first is the one who knows most, and says why. Two relations beyond that must hold: Envoy
lets go of an idle connection before the node does, or a request would meet a connection that is just being
closed; and a body that stands still is the node's to judge before it is Envoy's.

Reads and writes that can be sent again do not wait for that long: after a fraction of a second without an
answer another node is asked beside the first (`HEDGE_*`), and the first good answer is the client's.
"""

from holdfast.objects.settings import ObjectsPatience
from holdfast.wire.exchange import Limits

_OBJECTS = ObjectsPatience()
_WIRE = Limits()

NODE_S = _OBJECTS.memory_s + _OBJECTS.conflict_s + _OBJECTS.unknown_s
"""What a node may take for a request whose body is there, if everything it waits for takes its time."""
REQUEST_S = 50.0
"""What Envoy gives a request once its body is there, all tries together. Downloads have no such limit."""
CLIENT_S = 60.0
"""What clients wait: botocore's default, and that of most others, or less than theirs."""

CONNECT_S = 1.0
HEDGE_READ_S = 0.15
HEDGE_WRITE_S = 0.75
TRIES_AGAIN = 3

UPSTREAM_IDLE_S = 50.0
"""How long Envoy keeps a connection to a node that nobody uses."""
STREAM_STILL_S = 70.0
"""How long a request or answer may stand still before Envoy ends it."""
CLIENT_IDLE_S = 300.0
"""How long a client's connection may be unused."""
HEAD_S = 15.0
"""What a client may take to send a head."""

CHECK_EVERY_S = 0.3
CHECK_TIMEOUT_S = 2.0
CHECKS_FAILED = 2
CHECK_JITTER = 0.1
KNOWN_S = 1.0
"""What becomes of a node is known to every balancer by then, also that it died while nobody asks anything."""

assert CHECKS_FAILED * CHECK_EVERY_S * (1 + CHECK_JITTER) < KNOWN_S
assert NODE_S < REQUEST_S < CLIENT_S, "who knows most gives up first"
assert _WIRE.idle_s > UPSTREAM_IDLE_S, "Envoy lets go first"
assert _WIRE.stall_s < STREAM_STILL_S, "the node judges bodies that stand still"
