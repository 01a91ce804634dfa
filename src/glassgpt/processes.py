"""Several processes that train one model, started by torchrun; a single process is the case of one.

Every process knows the whole plan and computes its share of each batch. The first alone writes and speaks.
"""

import atexit
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from glassgpt.errors import ConfigError, TrainingStopped

#: How long processes wait for each other: the first validates and saves while the rest wait.
PATIENCE = timedelta(hours=2)


@dataclass(frozen=True)
class Processes:
    """This process's place among those that share the work."""

    rank: int = 0
    count: int = 1
    local_rank: int | None = None

    @property
    def first(self) -> bool:
        """Whether this is the one that plans, writes and speaks."""
        return self.rank == 0

    def share(self, rows: int) -> slice:
        """The rows of a batch that are this process's; every row is someone's.

        Raises:
            ConfigError: if there are fewer rows than processes.
        """
        if rows < self.count:
            raise ConfigError(f"train.batch_size: {rows} sequences cannot be shared by {self.count} processes")
        return slice(self.rank * rows // self.count, (self.rank + 1) * rows // self.count)

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.count > 1:
            dist.all_reduce(value)
        return value

    def agree(self, value: Any) -> Any:
        """The first process's value, in every process."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]

    def first_then_rest(self, first: Callable[[], Any], told: Callable[[Any], Any], rest: Callable[[Any], Any]) -> Any:
        """Run ``first`` in the first process, then ``rest(told(result))`` in the others; where it fails, all stop."""
        if self.first:
            try:
                result = first()
            except BaseException:
                self.agree(None)
                raise
            self.agree(told(result))
            return result
        news = self.agree(None)
        if news is None:
            raise TrainingStopped("the first process stopped before training began; it says why")
        return rest(news)


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the other processes, if torchrun started this one; they part when they end.

    Raises:
        ConfigError: if torchrun started several and they cannot reach each other.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or "RANK" not in os.environ:
        yield Processes()
        return
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    backend = "cpu:gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    if not dist.is_initialized():  # a second training goes on with the group of the first
        try:
            dist.init_process_group(backend, timeout=PATIENCE)
        except (RuntimeError, ValueError) as error:
            raise ConfigError(f"{count} processes were asked for, and they cannot reach each other: {error}") from None
        atexit.register(dist.destroy_process_group)
    yield Processes(int(os.environ["RANK"]), count, local_rank)
