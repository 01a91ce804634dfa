"""Where texts come from: files, folders, tables, corpora by name."""
