"""The headers by which a balancer and a node understand each other, and nobody else.

A balancer takes them away from what clients send and puts its own there. Their names do not begin with
`x-amz-` or `x-holdfast-`, because what does has to be signed by the client.
"""

REQUEST_HEADER = "holdfast-request"
"""The id of a request, the same for all its tries: a UUID."""
BALANCER_HEADER = "holdfast-balancer"
"""The secret that the balancer is known by."""
TRIES_HEADER = "x-envoy-attempt-count"
"""Which try of the request this is, from 1; Envoy's own."""
