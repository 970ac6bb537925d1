"""The store port and its adapters: one failure domain that keeps blobs, create-only."""
