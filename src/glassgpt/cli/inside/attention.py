"""``glassgpt attention``."""


def attention() -> None:
    """Show attention."""
