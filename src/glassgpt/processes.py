"""The processes that train one model, started by torchrun. A single process is the case of one.

Every process computes its share of each batch. All call the same functions in the same order, so that none waits for
a collective operation that another never starts; only rank 0 writes files and logs. If one process
fails, torchrun stops the others.
"""

import atexit
import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from glassgpt.errors import ConfigError, TrainingStopped

#: How long a process waits for the others: rank 0 plans, measures and saves while the rest wait.
TIMEOUT = timedelta(hours=2)


@dataclass(frozen=True)
class Processes:
    """This process's place among those that share the work."""

    rank: int = 0
    world_size: int = 1
    local_rank: int | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which plans, writes files and logs."""
        return self.rank == 0

    def share(self, rows: int, group: int = 1) -> slice:
        """The rows of a batch that this process computes; every row belongs to one process.

        Args:
            rows: in the global batch.
            group: so many neighbouring rows stay together, as the two of a preference pair do.

        Raises:
            ConfigError: if there are fewer groups than processes, or rows without a whole group.
        """
        groups, left_over = divmod(rows, group)
        if left_over:
            raise ConfigError(f"train.batch_size: {rows} sequences do not divide into groups of {group}")
        if groups < self.world_size:
            raise ConfigError(f"train.batch_size: {rows} sequences cannot be shared by {self.world_size} processes")
        start, stop = (rank * groups // self.world_size * group for rank in (self.rank, self.rank + 1))
        return slice(start, stop)

    def sum(self, value: Tensor) -> Tensor:
        """Sum a tensor of any shape over all processes, element by element, in place; all call this."""
        if self.world_size > 1:
            dist.all_reduce(value)
        return value

    def broadcast_from_rank0(self, value: Any) -> Any:
        """Rank 0's value, in every process; the values of the others are ignored."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]

    def wait_for_all(self) -> None:
        """Return when every process has called this."""
        if self.world_size > 1:
            dist.barrier()

    def rank0_then_others(
        self, on_rank0: Callable[[], Any], to_send: Callable[[Any], Any], on_other_ranks: Callable[[Any], Any]
    ) -> Any:
        """Run ``on_rank0()`` in rank 0, then ``on_other_ranks(to_send(result))`` in the others.

        Raises:
            TrainingStopped: in the others, if rank 0 failed.
        """
        if self.is_main:
            try:
                result = on_rank0()
            except BaseException:
                self.broadcast_from_rank0(None)
                raise
            self.broadcast_from_rank0(to_send(result))
            return result
        received = self.broadcast_from_rank0(None)
        if received is None:
            raise TrainingStopped("rank 0 stopped before training began; its message says why")
        return on_other_ranks(received)


@contextmanager
def join_processes() -> Iterator[Processes]:
    """Join the other processes, if torchrun started this one. After success, none goes on before all are done.

    Raises:
        ConfigError: if torchrun started several and they cannot reach each other.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1 or "RANK" not in os.environ:
        yield Processes()
        return
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    backend = "cpu:gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    if not dist.is_initialized():  # a second training uses the group of the first
        try:
            dist.init_process_group(backend, timeout=TIMEOUT)
        except (RuntimeError, ValueError) as error:
            raise ConfigError(
                f"{world_size} processes were started, and they cannot reach each other: {error}"
            ) from None
        atexit.register(_leave_processes)
    processes = Processes(int(os.environ["RANK"]), world_size, local_rank)
    yield processes
    processes.wait_for_all()


def _leave_processes() -> None:
    """End the process group, and let its threads release their last tensors before the interpreter ends.

    A gloo thread that still holds a tensor then would abort the process ("terminate called without an active
    exception"), though everything has been done. Destroying the group joins these threads, except after DDP, whose
    reducer keeps the group: then they need a moment.
    """
    gc.collect()
    dist.destroy_process_group()
    time.sleep(0.2)
