"""Batches as tensors, read in this process or ahead of time by worker processes.

Only :class:`glassgpt.data.Batches` chooses the tokens of batch k. So the result depends neither on the number of
workers nor on the first batch that is read.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset

from glassgpt.data.batch import Batch
from glassgpt.data.batches.windows import Batches
from glassgpt.errors import DataError

#: Batches that each worker process keeps ready.
PREFETCH_FACTOR = 4


class _BatchDataset(Dataset[Batch]):
    """Maps k to batch k."""

    def __init__(self, batches: Batches, rows: slice, mask_documents: bool):
        self.batches, self.rows, self.mask_documents = batches, rows, mask_documents

    def __getitem__(self, k: int) -> Batch:
        idx, targets = map(torch.from_numpy, self.batches.get(k, self.rows))
        if not self.mask_documents:
            return Batch(idx, targets)
        return Batch(idx, targets, *map(torch.from_numpy, self.batches.documents(k, self.rows)))


def worker_error(error: Exception) -> DataError | None:
    """Turn torch's error into a message for the user if it means that a worker process has died; else give None."""
    message = str(error).splitlines()[0] if str(error) else type(error).__name__
    if not message.startswith("DataLoader worker") and not isinstance(error, OSError | EOFError):
        return None
    return DataError(
        f"a process that reads batches has ended ({message}); is memory short? runtime.num_workers=0 reads batches in "
        "the main process"
    )


class Loader:
    """Reads this process's rows of any batch. Reading batches in order is fastest.

    Args:
        batches: chooses the tokens of batch k.
        rows: the rows of each batch that this process reads.
        mask_documents: whether to give document_ids and position_ids, too.
        num_workers: DataLoader worker processes; 0: load in this process.
        pin_memory: use page-locked memory, from which copies to a GPU are asynchronous.
    """

    def __init__(
        self,
        batches: Batches,
        rows: slice = slice(None),
        *,
        mask_documents: bool = False,
        num_workers: int = 0,
        pin_memory: bool = False,
    ):
        self.batches, self.num_workers, self.pin_memory = batches, num_workers, pin_memory
        self._dataset = _BatchDataset(batches, rows, mask_documents)
        self._next = 0
        self._iterator: Iterator[Batch] | None = None

    def get(self, k: int) -> Batch:
        """Load the rows of batch k.

        Raises:
            DataError: if a worker process has died.
        """
        if not self.num_workers:
            batch = self._dataset[k]
            pinned = (part if part is None else part.pin_memory() for part in batch)
            return Batch._make(pinned) if self.pin_memory else batch
        if k != self._next or self._iterator is None:
            self._iterator = None  # stops the workers of the old position
            self._iterator = iter(self._loader_from(k))
        self._next = k + 1
        try:
            return next(self._iterator)
        except (RuntimeError, OSError, EOFError) as error:  # the latter two: it died while sending a batch
            user_error = worker_error(error)
            if not user_error:
                raise
        self.close()  # else torch would raise its own error, too, as soon as the system reports the death
        raise user_error

    def close(self) -> None:
        """Stop the worker processes."""
        with contextlib.suppress(RuntimeError):  # a worker has died before
            self._iterator = None

    def _loader_from(self, k: int) -> "DataLoader[Batch]":
        """Make torch's loader of batch k and all later ones."""
        return DataLoader(
            self._dataset,
            batch_size=None,
            sampler=range(k, 2**62),
            num_workers=self.num_workers,
            prefetch_factor=PREFETCH_FACTOR,
            pin_memory=self.pin_memory,
            generator=torch.Generator(),  # the default generator is that of dropout: draw nothing from it
        )
