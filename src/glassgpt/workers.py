"""Tasks done by several child processes, with the same results whatever their number.

Plain child processes that are told their tasks through standard input, a line of JSON each, and answer the same way:
multiprocessing would want the user's script to guard its main part, or fork a process that may have threads.
"""

import importlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from glassgpt import errors
from glassgpt.errors import DataError, GlassError

#: What a task is told and what it answers: anything that JSON can say.
Message = dict[str, Any]


def run_tasks(
    name: str,
    setup: Message,
    tasks: Sequence[Message],
    processes: int,
    here: Callable[[Message], Message] | None = None,
) -> Iterator[tuple[int, Message]]:
    """Do tasks, and yield (number, answer) as they are done, in any order.

    Args:
        name: of a class, ``module:Class``; it is made with ``setup`` once in each process, and called with each task.
        setup: for the class.
        tasks: for its instances.
        processes: to use; with one, the work is done in this process.
        here: the instance for this process, where there is one already.

    Raises:
        GlassError: the first that a task raises; what is under way then is stopped.
        DataError: if a process ends by itself, for want of memory for example.
    """
    if processes <= 1 or len(tasks) <= 1:
        worker = here or _find(name)(setup)
        for number, task in enumerate(tasks):
            yield number, worker(task)
        return
    waiting: queue.Queue[int | None] = queue.Queue()
    for number in range(len(tasks)):
        waiting.put(number)
    answers: queue.Queue[tuple[int, Message | GlassError]] = queue.Queue()
    children = [_start() for _ in range(min(processes, len(tasks)))]
    threads = [
        threading.Thread(target=_feed, args=(child, {"name": name, "setup": setup}, tasks, waiting, answers))
        for child in children
    ]
    try:
        for thread in threads:
            waiting.put(None)
            thread.start()
        for _ in tasks:
            number, answer = answers.get()
            if isinstance(answer, GlassError):
                raise answer
            yield number, answer
    finally:
        while True:  # nothing more is begun
            try:
                waiting.get_nowait()
            except queue.Empty:
                break
        for _ in threads:
            waiting.put(None)
        for child in children:
            child.terminate()
        for thread in threads:
            thread.join()


def _start() -> "subprocess.Popen[bytes]":
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", "from glassgpt.workers import work; work()"]
    # in a session of its own, so that Ctrl-C is dealt with here
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
    )


def _feed(
    child: "subprocess.Popen[bytes]",
    setup: Message,
    tasks: Sequence[Message],
    waiting: "queue.Queue[int | None]",
    answers: "queue.Queue[tuple[int, Message | GlassError]]",
) -> None:
    """Hand tasks to one child until there are no more."""
    assert child.stdin and child.stdout
    number: int | None = -1
    try:
        with child, child.stdin as to:
            to.write(json.dumps(setup).encode() + b"\n")
            while (number := waiting.get()) is not None:
                to.write(json.dumps(tasks[number]).encode() + b"\n")
                to.flush()
                answer = json.loads(child.stdout.readline() or b"null")
                if answer is None:
                    raise OSError(f"exit code {child.wait()}")
                if "error" in answer:
                    answers.put((number, getattr(errors, answer["kind"])(*answer["error"])))
                    return
                answers.put((number, answer))
    except (OSError, ValueError) as error:
        answers.put((-1, DataError(f"a process that prepares data has ended early ({error}); is memory short?")))


def work() -> None:
    """The part of a child process: do tasks until standard input ends."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    worker: Any = None
    for line in sys.stdin.buffer:
        message = json.loads(line)
        try:
            if worker is None:
                worker = _find(message["name"])(message["setup"])
                continue
            answer = worker(message)
        except GlassError as error:
            answer = {"kind": _kind(error), "error": [str(error)]}
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


def _end_with(parent: int) -> None:
    """End when the process that hands out tasks was killed: another may be doing the same again."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def _kind(error: GlassError) -> str:
    """An error's class, if a message is all that it is made of."""
    return type(error).__name__ if type(error) in (errors.DataError, errors.TokenizerError) else "DataError"


def _find(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
