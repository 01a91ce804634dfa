"""Work for child processes in tests."""

import os
import signal
from typing import Any


class Dying:
    """Squares numbers, and kills its process at one of them."""

    def __init__(self, setup: dict[str, Any]):
        self.setup = setup

    def __call__(self, task: dict[str, Any]) -> dict[str, Any]:
        if task["n"] == self.setup["dies_at"]:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"square": task["n"] ** 2, "process": os.getpid()}
