"""Text of others on a terminal."""


def printable(text: str) -> str:
    """``text`` with a space for each character that a terminal would obey instead of showing."""
    return "".join(c if c.isprintable() else " " for c in text)
