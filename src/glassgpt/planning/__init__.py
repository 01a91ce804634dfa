"""From a request to a run: what it will be (:mod:`~glassgpt.planning.run_plan`), and a trainer for it (``opening``)."""
