"""A prepared corpus: token shards, their manifest, and how they are made."""
