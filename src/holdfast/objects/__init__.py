"""What S3 means: buckets, versions, uploads, listings, conditions. Knows nothing of HTTP."""
