"""Times the node over HTTP, side by side, with a load generator of its own."""
