"""How counts are said in sentences."""


def counted(count: int, noun: str) -> str:
    """As "1 pack" or "2 packs", for nouns whose plural is made with an s."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def of_all(count: int, all_of_them: int, noun: str, verb: str, plural: str) -> str:
    """As "1 of 2 packs has" or "2 of 2 packs have"; `verb` is what one does, `plural` what more do."""
    return f"{count} of {counted(all_of_them, noun)} {verb if count == 1 else plural}"
