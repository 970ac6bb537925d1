"""The S3 face: bytes in, typed operations out, exact answers back."""
