"""Holdfast: S3 storage that keeps running while its parts fail."""

__version__ = "0.1.0"
