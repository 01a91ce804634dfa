"""Run tasks in child processes; the results do not depend on the number of processes.

The children are plain Python processes that read one task per line of JSON from standard input, and write results the
same way. (multiprocessing would require a main guard in the user's script, or fork a process that may have threads.)
"""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pkgutil import resolve_name
from typing import Any

from glassgpt import errors
from glassgpt.errors import DataError, GlassError

#: A task or its result: anything that JSON can express.
Message = dict[str, Any]


def run_tasks(
    worker_class: type,
    setup: Message,
    tasks: Sequence[Message],
    processes: int,
    worker: Callable[[Message], Message] | None = None,
) -> Iterator[tuple[int, Message]]:
    """Run tasks, and yield (number, result) as they finish, in any order.

    Args:
        worker_class: each process makes one instance with ``setup`` and calls it with each task.
        setup: for the class.
        tasks: for its instances.
        processes: how many to use; with one, the tasks run in this process.
        worker: an instance to use in this process, if there is one.

    Raises:
        GlassError: the first that a task raises; the other tasks are stopped.
        DataError: if a child process dies, for example for lack of memory.
    """
    if processes <= 1 or len(tasks) <= 1:
        worker = worker or worker_class(setup)
        for number, task in enumerate(tasks):
            yield number, worker(task)
        return
    start = {"name": f"{worker_class.__module__}:{worker_class.__qualname__}", "setup": setup}
    children = [_start() for _ in range(min(processes, len(tasks)))]
    pending: queue.Queue[int | None] = queue.Queue()
    for item in [*range(len(tasks)), *(None for _ in children)]:
        pending.put(item)
    results: queue.Queue[tuple[int, Message | GlassError]] = queue.Queue()
    threads = [threading.Thread(target=_feed, args=(child, start, tasks, pending, results)) for child in children]
    try:
        for thread in threads:
            thread.start()
        for _ in tasks:
            number, result = results.get()
            if isinstance(result, GlassError):
                raise result
            yield number, result
    finally:
        with contextlib.suppress(queue.Empty):  # start no more tasks
            while True:
                pending.get_nowait()
        for child in children:
            pending.put(None)
            child.terminate()
        for thread in threads:
            thread.join()


def _start() -> "subprocess.Popen[bytes]":
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", "from glassgpt.workers import child_main; child_main()"]
    # in its own session, so that only this process handles Ctrl-C
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
    )


def _feed(
    child: "subprocess.Popen[bytes]",
    start: Message,
    tasks: Sequence[Message],
    pending: "queue.Queue[int | None]",
    results: "queue.Queue[tuple[int, Message | GlassError]]",
) -> None:
    """Send pending tasks to one child, and collect the results."""
    assert child.stdin and child.stdout
    try:
        with child, child.stdin as stdin:
            stdin.write(json.dumps(start).encode() + b"\n")
            while (number := pending.get()) is not None:
                stdin.write(json.dumps(tasks[number]).encode() + b"\n")
                stdin.flush()
                result = json.loads(child.stdout.readline() or b"null")
                if result is None:
                    raise OSError(f"exit code {child.wait()}")
                if "error" in result:
                    results.put((number, getattr(errors, result["kind"])(*result["error"])))
                    return
                results.put((number, result))
    except (OSError, ValueError) as error:
        results.put((-1, DataError(f"a process that prepares data has ended early ({error}); is memory short?")))


def child_main() -> None:
    """Run tasks in a child process until standard input ends."""
    threading.Thread(target=_exit_with, args=(os.getppid(),), daemon=True).start()
    worker: Any = None
    for line in sys.stdin.buffer:
        message = json.loads(line)
        try:
            if worker is None:
                worker = resolve_name(message["name"])(message["setup"])
                continue
            result = worker(message)
        except (GlassError, OSError) as error:  # OSError: disk full, read-only
            simple = type(error) in (errors.DataError, errors.TokenizerError)  # made from a message alone
            result = {"kind": type(error).__name__ if simple else "DataError", "error": [str(error)]}
        sys.stdout.buffer.write(json.dumps(result).encode() + b"\n")
        sys.stdout.buffer.flush()


def _exit_with(parent: int) -> None:
    """Exit when the parent is killed: another process may already be doing the same work."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)
