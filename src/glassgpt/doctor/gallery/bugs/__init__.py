"""The bugs of models, one file for each kind."""
