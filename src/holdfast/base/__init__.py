"""What every room stands on: time, randomness, ids, errors, checksums. Imports nothing of ours."""
