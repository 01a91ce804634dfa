"""Training. Start reading at :mod:`glassgpt.training.loop`."""
