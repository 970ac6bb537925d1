"""Packs: batch, encode, place, write, read, verify, reconstruct."""
