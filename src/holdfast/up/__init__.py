"""A whole cluster on one machine: index, nodes and balancers, each a process of its own, watched over."""
