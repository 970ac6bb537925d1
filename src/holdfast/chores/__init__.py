"""Background work: one bounded unit at a time."""
