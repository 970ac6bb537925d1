"""Scans in SQL, the delimited ones as a walk that jumps over each prefix. Builds text, does no I/O."""

from holdfast.index.port import Prefix, Row

PLAIN = """
SELECT key, value, revision FROM holdfast.rows WHERE key >= $1 AND key < $2 ORDER BY key LIMIT $3
"""

# Each step looks up the first key at or after the last one's successor: for a key that rolls up, the least
# key beyond its prefix, which is the prefix with the last byte of the delimiter raised by one ($5).
WALK = """
WITH RECURSIVE walk AS (
    (
        SELECT 1 AS n, key, value, revision, position($4 IN substring(key FROM $6)) AS at
        FROM holdfast.rows WHERE key >= $1 AND key < $2 ORDER BY key LIMIT 1
    )
    UNION ALL
    SELECT walk.n + 1, next.key, next.value, next.revision, position($4 IN substring(next.key FROM $6))
    FROM walk CROSS JOIN LATERAL (
        SELECT key, value, revision FROM holdfast.rows
        WHERE key < $2 AND key >= CASE
            WHEN walk.at > 0
            THEN substring(walk.key FOR $6 + walk.at + octet_length($4) - 3) || $5
            ELSE walk.key || '\\x00'::bytea
        END
        ORDER BY key LIMIT 1
    ) AS next
    WHERE walk.n < $3
)
SELECT
    CASE WHEN at > 0 THEN substring(key FOR $6 + at + octet_length($4) - 2) ELSE key END AS key,
    CASE WHEN at > 0 THEN NULL ELSE value END AS value,
    revision
FROM walk ORDER BY n
"""


def can_walk(delimiter: bytes) -> bool:
    """Whether the least key beyond a prefix can be told by raising its last byte."""
    return delimiter[-1] != 0xFF


def walk_arguments(
    start: bytes, end: bytes, limit: int, delimiter: bytes, skip: int
) -> tuple[bytes, bytes, int, bytes, bytes, int]:
    """Arguments of `WALK`. SQL counts bytes from 1."""
    return start, end, limit, delimiter, bytes([delimiter[-1] + 1]), skip + 1


def item(key: bytes, value: bytes | None, revision: int) -> Row | Prefix:
    """One line of an answer."""
    return Prefix(key) if value is None else Row(key, value, revision)
