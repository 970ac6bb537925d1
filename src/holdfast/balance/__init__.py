"""The balancer: Envoy, configured from who the members are, watched, and asked how it sees them."""
