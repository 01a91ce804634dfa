"""Conversations to train on: read rows of any usual format, encode them with a loss mask, pack them, batch them."""
