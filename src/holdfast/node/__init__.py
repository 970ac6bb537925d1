"""Builds the parts from the configuration, runs them, drains them."""
