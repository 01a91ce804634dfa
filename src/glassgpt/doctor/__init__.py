"""Find the bugs that do not crash: in models, training loops, data, runs, and on this machine."""
