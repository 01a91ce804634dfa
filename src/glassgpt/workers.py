"""Run tasks in child processes (loky's); the results do not depend on the number of processes.

Loky needs no main guard in the user's script, forks no process that may have threads, and reports a worker that dies.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from itertools import islice
from typing import Any

from glassgpt.errors import DataError, GlassError, TokenizerError

#: A task or its result, if it is also kept as JSON.
Message = dict[str, Any]


def run_tasks(
    worker_class: Callable[[Any], Callable[[Any], Any]],
    setup: Any,
    tasks: Iterable[Any],
    processes: int,
    worker: Callable[[Any], Any] | None = None,
) -> Iterator[tuple[int, Any]]:
    """Run tasks, and yield (number, result) as they finish, in any order.

    Args:
        worker_class: each process makes one instance with ``setup`` and calls it with each task.
        setup: for the class.
        tasks: for its instances; two for each process are read ahead.
        processes: how many to use; with one, the tasks run in this process.
        worker: an instance to use in this process, if there is one.

    Raises:
        GlassError: the first that a task raises; the other tasks are stopped.
        DataError: if a child process dies, for example for lack of memory.
    """
    if isinstance(tasks, Sized):
        processes = min(processes, len(tasks))
    numbered = enumerate(tasks)
    if processes <= 1:
        worker = worker or worker_class(setup)
        for number, task in numbered:
            yield number, worker(task)
        return
    from loky import ProcessPoolExecutor
    from loky.process_executor import BrokenProcessPool

    executor = ProcessPoolExecutor(
        processes,
        initializer=_start,
        initargs=(worker_class, setup, os.getpid()),
        env={"LOKY_MAX_MEMORY_LEAK_SIZE": "1e18"},  # a worker may grow: never replace it
    )
    pending: dict[Future[Any], int] = {}
    try:
        while True:
            for number, task in islice(numbered, 2 * processes - len(pending)):
                with _interrupt_later():
                    pending[executor.submit(_run, task)] = number
            if not pending:
                return
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                try:
                    result = future.result()
                except BrokenProcessPool as error:
                    reason = str(error).partition("\n")[0]
                    raise DataError(f"a child process has ended early; is memory short? ({reason})") from None
                yield pending.pop(future), result
    finally:
        executor.shutdown(kill_workers=True)


@contextmanager
def _interrupt_later() -> Iterator[None]:
    """Block Ctrl-C. Processes and threads that start meanwhile never receive it: only this thread handles it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_make_worker: Callable[[], Callable[[Any], Any]]
_worker: Callable[[Any], Any] | None = None


def _start(worker_class: Callable[[Any], Callable[[Any], Any]], setup: Any, parent: int) -> None:
    """Prepare a child process; the worker is made with its first task, so that errors are reported like its own."""
    global _make_worker
    _make_worker = lambda: worker_class(setup)  # noqa: E731
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setsid"):
        os.setsid()  # Linux divides a busy CPU between sessions, not between processes
    threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()


def _run(task: Any) -> Any:
    global _worker
    try:
        _worker = _worker or _make_worker()
        return _worker(task)
    except (GlassError, OSError) as error:  # OSError: disk full, read-only
        simple = type(error) in (DataError, TokenizerError)  # made from a message alone
        raise (error if simple else DataError(str(error))) from None


def _exit_with(parent: int) -> None:
    """Exit when the parent is killed: another process may already be doing the same work."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)
