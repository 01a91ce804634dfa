"""Where the time of a step goes: a trace of a few steps by torch's own profiler."""

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

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
        kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
        self.profiler = profile(activities=kinds)
        self.steps, self.closed = 0, False

    def step(self) -> str | None:
        """Called after every step; the report, once the recorded steps are over."""
        self.steps += 1
        if self.steps == SKIPPED:
            self.profiler.start()
        return self.close() if self.steps == SKIPPED + RECORDED else None

    def close(self) -> str | None:
        """Stop recording and write the trace; the report, if there is one that has not been given."""
        if self.closed:
            return None
        self.closed = True
        if self.steps >= SKIPPED:
            self.profiler.stop()
        if self.steps <= SKIPPED:
            return f"no profile: it needs more than {SKIPPED} steps, and there were {self.steps}"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)
        self.profiler.export_chrome_trace(str(self.path))
        if not self.path.exists():  # torch only logs that it failed, and leaves what it has written
            self.path.with_name(self.path.name + ".tmp").unlink(missing_ok=True)
            return f"no profile: {self.path} cannot be written; is the disk full?"
        return self._report()

    def _report(self) -> str:
        """The ten costliest operations by their own time, and on CUDA the memory."""
        gpu = self.device.type == "cuda"

        def own_time(event: "torch.autograd.profiler_util.FunctionEventAvg") -> float:
            return event.self_device_time_total if gpu else event.self_cpu_time_total  # in microseconds

        recorded = self.steps - SKIPPED
        events = self.profiler.key_averages()
        total = sum(own_time(event) for event in events) or 1.0
        costliest = sorted(events, key=own_time, reverse=True)[:10]
        lines = [f"the ten costliest operations of {recorded} steps, by their own time on {self.device}:"]
        for event in costliest:
            milliseconds = own_time(event) / 1000 / recorded
            share, calls = own_time(event) / total, event.count / recorded
            lines.append(f"  {share:6.1%}  {milliseconds:9.2f} ms a step  {calls:7.1f} calls  {event.key[:60]}")
        lines.append(f"the whole trace is in {self.path}: open it in chrome://tracing or https://ui.perfetto.dev")
        if gpu:
            lines.append(torch.cuda.memory_summary(self.device, abbreviated=True))
        return "\n".join(lines)
