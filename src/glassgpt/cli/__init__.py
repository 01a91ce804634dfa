"""The command line: one thin module per group of verbs. Nothing here imports torch until a verb runs."""
