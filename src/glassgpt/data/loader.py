"""Batches as tensors, one after another, read in this process or ahead of it by others.

Which tokens make batch k is decided by :class:`glassgpt.data.Batches` alone, so neither the number of worker processes
nor where the loader began changes what it gives.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from glassgpt.data.batches import Batches
from glassgpt.errors import DataError

#: Batches that a worker has ready.
AHEAD = 4


class Loaded(NamedTuple):
    """Rows of a batch: inputs and targets, int64 ``[rows, T]``; where documents are masked, their ids and positions."""

    idx: Tensor
    targets: Tensor
    document_ids: Tensor | None = None
    positions: Tensor | None = None


class _Numbered(Dataset[Loaded]):
    """The batches of a stream by their number."""

    def __init__(self, batches: Batches, rows: slice, mask_documents: bool):
        self.batches, self.rows, self.mask_documents = batches, rows, mask_documents

    def __getitem__(self, k: int) -> Loaded:
        inputs, targets = map(torch.from_numpy, self.batches.get(k, self.rows))
        if not self.mask_documents:
            return Loaded(inputs, targets)
        return Loaded(inputs, targets, *map(torch.from_numpy, self.batches.documents(k, self.rows)))


def dead_worker(error: Exception) -> DataError | None:
    """What to tell the user, if a worker process has died. torch raises that wherever the program happens to be."""
    said = str(error).splitlines()[0] if str(error) else type(error).__name__
    if not said.startswith("DataLoader worker") and not isinstance(error, OSError | EOFError):
        return None
    return DataError(
        f"a process that reads batches has ended ({said}); is memory short? runtime.workers=0 reads them in this one"
    )


class Loader:
    """Gives this process's rows of any batch; quickly, if they are asked for in order.

    Args:
        batches: what there is.
        rows: of each batch, this process's.
        mask_documents: whether to give document ids and positions, too.
        workers: processes that read ahead; 0: batches are read when they are asked for.
        pinned: whether a GPU should be able to fetch them from memory by itself.
    """

    def __init__(
        self,
        batches: Batches,
        rows: slice = slice(None),
        *,
        mask_documents: bool = False,
        workers: int = 0,
        pinned: bool = False,
    ):
        self.batches, self.workers, self.pinned = batches, workers, pinned
        self._dataset = _Numbered(batches, rows, mask_documents)
        self._next = 0
        self._coming: Iterator[Loaded] | None = None

    def get(self, k: int) -> Loaded:
        """The rows of batch k.

        Raises:
            DataError: if a worker process has died.
        """
        if not self.workers:
            parts: list[Any] = list(self._dataset[k])
            return Loaded(*(part.pin_memory() if self.pinned and part is not None else part for part in parts))
        if k != self._next or self._coming is None:
            self._coming = None  # ends the workers that read from elsewhere
            self._coming = iter(self._ahead(k))
        self._next = k + 1
        try:
            return next(self._coming)
        except (RuntimeError, OSError, EOFError) as error:  # the latter two: it died while it handed a batch over
            if told := dead_worker(error):
                raise told from None
            raise

    def close(self) -> None:
        """End the worker processes."""
        with contextlib.suppress(RuntimeError):  # of a worker that died before
            self._coming = None

    def _ahead(self, k: int) -> "DataLoader[Loaded]":
        """torch's loader of all batches from k on."""
        return DataLoader(
            self._dataset,
            batch_size=None,
            sampler=range(k, 2**62),
            num_workers=self.workers,
            prefetch_factor=AHEAD,
            pin_memory=self.pinned,
            generator=torch.Generator(),  # or it would draw from the one that dropout uses
        )
