"""The modes of ``glassgpt sample``: the request, comparison of settings, and replay of a ledger."""
