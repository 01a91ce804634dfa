"""``python -m glassgpt`` is ``glassgpt``."""

from glassgpt.cli.main import main

main()
