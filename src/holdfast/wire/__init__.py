"""HTTP/1.1 as the house speaks it: strict heads, bounded connections, a server, whoever answers behind it."""
