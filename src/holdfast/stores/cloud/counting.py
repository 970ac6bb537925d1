"""How much of a bucket is used.

No provider answers that at once; a listing does, page by page. What must hold: what was put is counted from
the moment it was put, so that a store never looks emptier than this node has left it; a count that is not
through yet never makes less of the one before. What was deleted is only seen by the next count.

Pure: pages are handed in.
"""


class Count:
    """Bytes in a bucket. `again_s` after a count began, the next may begin. Times in seconds."""

    def __init__(self, again_s: float) -> None:
        assert again_s > 0
        self._again_s = again_s
        self._counted = 0
        self._added = 0
        self._began_at: float | None = None
        self._under_way = False
        self._after = ""
        self._so_far = 0
        self._added_before = 0

    @property
    def used(self) -> int:
        """What is known to be there."""
        return max(self._counted, self._so_far) + self._added

    @property
    def after(self) -> str:
        """The last name that was counted."""
        return self._after

    def put(self, size: int) -> None:
        """A blob of that size was put."""
        self._added += size

    def is_due(self, now: float) -> bool:
        """Whether a page should be counted; begins a count where it is time for one."""
        if self._under_way:
            return True
        if self._began_at is not None and now - self._began_at < self._again_s:
            return False
        self._began_at, self._under_way = now, True
        self._after, self._so_far, self._added_before = "", 0, self._added
        return True

    def page(self, last_name: str, size: int) -> None:
        """The names up to `last_name`, with `size` bytes together; an empty name is the end."""
        assert self._under_way
        if last_name:
            assert last_name > self._after
            self._after = last_name
            self._so_far += size
            return
        self._counted, self._so_far, self._under_way = self._so_far, 0, False
        # What was put while it was counted may be in the count or not: it is counted twice rather than never.
        self._added -= self._added_before
