"""Work for child processes in tests."""

import os
import signal
import time
from pathlib import Path
from typing import Any


class Dying:
    """Squares numbers, and kills its process at one of them."""

    def __init__(self, setup: dict[str, Any]):
        self.setup = setup

    def __call__(self, task: dict[str, Any]) -> dict[str, Any]:
        if task["n"] == self.setup["dies_at"]:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"square": task["n"] ** 2, "process": os.getpid()}


class Waiting:
    """Leaves a file with the process's number as its name, and waits."""

    def __init__(self, folder: str):
        self.folder = folder

    def __call__(self, task: int) -> None:
        Path(self.folder, str(os.getpid())).touch()
        time.sleep(300)
