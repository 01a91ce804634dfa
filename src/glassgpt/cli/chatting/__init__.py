"""The parts of ``glassgpt chat``: the loop that reads messages and prints answers, and the commands."""
