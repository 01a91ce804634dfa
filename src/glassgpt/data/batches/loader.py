"""Batches as tensors, one after another, read in this process or ahead of it by worker processes.

Only :class:`glassgpt.data.Batches` decides which tokens make batch k. So neither the number of workers nor the batch
that the loader started with changes what it gives.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset

from glassgpt.data.batch import Batch
from glassgpt.data.batches.windows import Batches
from glassgpt.errors import DataError

#: Batches that each worker process has ready.
PREFETCH_FACTOR = 4


class _BatchDataset(Dataset[Batch]):
    """The batches of a stream by their number."""

    def __init__(self, batches: Batches, rows: slice, mask_documents: bool):
        self.batches, self.rows, self.mask_documents = batches, rows, mask_documents

    def __getitem__(self, k: int) -> Batch:
        idx, targets = map(torch.from_numpy, self.batches.get(k, self.rows))
        if not self.mask_documents:
            return Batch(idx, targets)
        return Batch(idx, targets, *map(torch.from_numpy, self.batches.documents(k, self.rows)))


def worker_error(error: Exception) -> DataError | None:
    """The message for the user if a worker process has died. torch raises its error in the middle of other work."""
    message = str(error).splitlines()[0] if str(error) else type(error).__name__
    if not message.startswith("DataLoader worker") and not isinstance(error, OSError | EOFError):
        return None
    return DataError(
        f"a process that reads batches has ended ({message}); is memory short? runtime.num_workers=0 reads batches in "
        "the main process"
    )


class Loader:
    """Gives this process's rows of any batch. Reading batches in order is fastest.

    Args:
        batches: decides which tokens make batch k.
        rows: the rows of each batch that this process reads.
        mask_documents: whether to give document ids and position ids, too.
        num_workers: processes that read ahead; 0: batches are read when they are asked for.
        pin_memory: use page-locked memory, from which a GPU copies without waiting.
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
        """The rows of batch k.

        Raises:
            DataError: if a worker process has died.
        """
        if not self.num_workers:
            batch = self._dataset[k]
            return (
                Batch._make(part if part is None else part.pin_memory() for part in batch) if self.pin_memory else batch
            )
        if k != self._next or self._iterator is None:
            self._iterator = None  # ends the workers that read from elsewhere
            self._iterator = iter(self._from(k))
        self._next = k + 1
        try:
            return next(self._iterator)
        except (RuntimeError, OSError, EOFError) as error:  # the latter two: it died while it handed a batch over
            if user_error := worker_error(error):
                raise user_error from None
            raise

    def close(self) -> None:
        """End the worker processes."""
        with contextlib.suppress(RuntimeError):  # of a worker that died before
            self._iterator = None

    def _from(self, k: int) -> "DataLoader[Batch]":
        """torch's loader of all batches from k on."""
        return DataLoader(
            self._dataset,
            batch_size=None,
            sampler=range(k, 2**62),
            num_workers=self.num_workers,
            prefetch_factor=PREFETCH_FACTOR,
            pin_memory=self.pin_memory,
            generator=torch.Generator(),  # or it would draw from the one that dropout uses
        )
