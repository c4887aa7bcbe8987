"""A function over a stream of chunks, in order, in this process or in several."""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, islice
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from datamodules.corpus import DataError

A, B = TypeVar("A"), TypeVar("B")


def map_chunks(function: Callable[[A], B], chunks: Iterable[A], processes: int = 1) -> Iterator[B]:
    """`map(function, chunks)`; with `processes` > 1 in so many workers, a chunk for each at a time.

    `function` goes to each worker once, pickled. The chunks themselves are always made in this process.

    Not `concurrent.futures`: a worker that dies while a large chunk is on its way, or Ctrl-C while the workers start,
    leaves its threads waiting for ever (CPython issue 94777).

    Raises:
        DataError: a worker was killed.
    """
    chunks = iter(chunks)
    first = list(islice(chunks, processes))  # not more workers than chunks
    if len(first) < 2:
        yield from map(function, chain(first, chunks))
        return
    # Not forked: other threads (a progress bar, torch) may hold locks.
    context = multiprocessing.get_context("spawn")
    workers: deque[_Worker] = deque()
    try:
        with _interrupts_held():
            workers.extend(_Worker(context) for _ in first)
        for worker, chunk in zip(workers, first, strict=True):
            worker.send(function)
            worker.send(chunk)
        for chunk in chunks:
            result = workers[0].receive()
            workers[0].send(chunk)
            workers.rotate(-1)
            yield result
        for worker in workers:
            yield worker.receive()
    except _WorkerDied as error:
        raise DataError(
            f"data.num_proc={processes}: a process that tokenizes was killed, perhaps for want of memory; "
            "run again with fewer"
        ) from error
    finally:
        for worker in workers:
            worker.end()


class _WorkerDied(Exception):
    pass


class _Worker:
    """A process that is given a function, then chunks, and gives a result for each. It ends with its parent, whose
    end of the pipe closes then."""

    def __init__(self, context: Any):
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_work, args=(other,), daemon=True)
        self._process.start()
        other.close()  # so that the worker alone holds it, and reading ends when it dies

    def send(self, what: Any) -> None:
        try:
            self._pipe.send(what)
        except OSError as error:
            raise _WorkerDied from error

    def receive(self) -> Any:
        try:
            result, error, trace = self._pipe.recv()
        except (EOFError, OSError) as died:
            raise _WorkerDied from died
        if error is not None:
            raise error from RuntimeError(f"in a worker process:\n{trace}")
        return result

    def end(self) -> None:
        self._pipe.close()
        self._process.terminate()
        self._process.join()


def _work(pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    with suppress(EOFError, OSError):  # the parent has ended
        function = pipe.recv()
        while True:
            chunk = pipe.recv()
            try:
                answer = function(chunk), None, None
            except Exception as error:
                answer = None, error, traceback.format_exc()
            pipe.send(answer)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C, which a terminal sends to all processes, waits: those that start do not know yet that it is not theirs."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
