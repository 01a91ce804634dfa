"""Where the time of a step goes: a trace and a table of a few steps, by torch's own profiler."""

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

#: Steps left alone first (compiling, allocating), and steps recorded.
SKIPPED, RECORDED = 3, 5


class Profile:
    """Records some steps of a training and writes their trace.

    Args:
        path: the file to write, in Chrome's trace format (chrome://tracing, https://ui.perfetto.dev).
        device: where the model computes.
    """

    def __init__(self, path: Path, device: torch.device):
        self.path, self.device = path, device
        self._report: str | None = None
        self._profiler = profile(
            activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda"),
            schedule=schedule(wait=SKIPPED - 1, warmup=1, active=RECORDED, repeat=1),
            on_trace_ready=self._write,
        )
        self._profiler.start()

    def step(self) -> str | None:
        """Called after every step; the report, once the recorded steps are over."""
        self._profiler.step()
        report, self._report = self._report, None
        return report

    def close(self) -> str | None:
        """Stop recording; the report, if there is one that has not been given."""
        self._profiler.stop()
        steps = self._profiler.step_num
        if steps <= SKIPPED:
            return f"no profile: it needs more than {SKIPPED} steps, and there were {steps}"
        return self._report

    def _write(self, profiler: profile) -> None:
        """Write the trace and the report: the ten costliest operations, and on CUDA the memory."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)
        profiler.export_chrome_trace(str(self.path))
        if not self.path.exists():  # torch only logs that it failed, and leaves what it has written
            self.path.with_name(self.path.name + ".tmp").unlink(missing_ok=True)
            self._report = f"no profile: {self.path} cannot be written; is the disk full?"
            return
        gpu = self.device.type == "cuda"
        key = "self_device_time_total" if gpu else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=key, row_limit=10, max_name_column_width=60)
        steps = profiler.step_num - SKIPPED
        self._report = (
            f"the ten costliest operations of {steps} steps, by their own time on {self.device}:\n{table}"
            f"the whole trace is in {self.path}: open it in chrome://tracing or https://ui.perfetto.dev"
            + (f"\n{torch.cuda.memory_summary(self.device, abbreviated=True)}" if gpu else "")
        )
