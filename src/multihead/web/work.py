"""Work for a reader who moves on: the newest first, each piece once, and none that nobody waits for any more."""

import asyncio
import contextlib
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable

Run = Callable[[Callable[[], None]], bytes]
"""Work to do in a thread; it calls what it is given between its pieces, which raises :class:`Stopped`."""

POLL = 0.1
"""Seconds between two looks whether a client is still there."""

_DEEPEST = 4


class Stopped(Exception):  # noqa: N818
    """Nobody waits for this work any more."""


class Memory:
    """Answers by key, the last asked ones, up to so many bytes; for several threads."""

    def __init__(self, most: int) -> None:
        self.most, self.bytes = most, 0
        self._held: OrderedDict[Hashable, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, key: Hashable) -> bytes | None:
        """What is remembered, which is thereby the last to be forgotten."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
            return self._held.get(key)

    def keep(self, key: Hashable, answer: bytes) -> None:
        """Remember an answer, and forget the oldest where there are too many bytes."""
        with self._lock:
            self.bytes += len(answer) - len(self._held.pop(key, b""))
            self._held[key] = answer
            while self.bytes > self.most:
                _, oldest = self._held.popitem(last=False)
                self.bytes -= len(oldest)


class _Job:
    def __init__(self, key: Hashable, run: Run, loop: asyncio.AbstractEventLoop) -> None:
        self.key, self.run, self.loop = key, run, loop
        self.waiting = 0
        self.stopped = threading.Event()
        self.ended = asyncio.Event()
        self.answer: bytes | None = None
        self.error: BaseException | None = None

    def end(self) -> None:
        # the loop may be gone, and with it all who waited
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.ended.set)


class Lane:
    """Threads that take the newest job first, also between two pieces of an older one.

    Args:
        memory: where answers are kept; None: nowhere.
        workers: how many threads.
        finishes: whether work that was begun is brought to its end, whoever leaves and whatever else is asked for.
        begin: called once in each thread.
    """

    def __init__(
        self,
        memory: Memory | None = None,
        *,
        workers: int = 1,
        finishes: bool = False,
        begin: Callable[[], None] | None = None,
    ) -> None:
        self._memory, self._finishes, self._begin = memory, finishes, begin
        self._waiting: list[_Job] = []
        self._known: dict[Hashable, _Job] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(workers)]
        for thread in self._threads:
            thread.start()

    async def answer(self, key: Hashable, run: Run, gone: Callable[[], Awaitable[bool]]) -> bytes:
        """The answer of some work, done once for all who ask for the same at once.

        Args:
            key: what names the work.
            run: the work.
            gone: whether the client that asks has left.

        Raises:
            Stopped: the client has left, or the lane is closed.
        """
        found = None if self._memory is None else self._memory.find(key)
        if found is not None:
            return found
        job = self._job(key, run)
        try:
            while not job.ended.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(job.ended.wait(), POLL)
                if not job.ended.is_set() and (self._closed or await gone()):
                    raise Stopped
        finally:
            self._leave(job)
        if job.error is not None:
            raise job.error
        assert job.answer is not None  # noqa: S101  it has ended without an error
        return job.answer

    def _job(self, key: Hashable, run: Run) -> _Job:
        """A new job, or the one that is known, as the newest."""
        with self._changed:
            if self._closed:
                raise Stopped
            job = self._known.get(key)
            if job is None:
                job = self._known[key] = _Job(key, run, asyncio.get_running_loop())
                self._waiting.append(job)
                self._changed.notify()
            elif job in self._waiting:
                self._waiting.remove(job)
                self._waiting.append(job)
            job.waiting += 1
            return job

    def _leave(self, job: _Job) -> None:
        with self._changed:
            job.waiting -= 1
            begun = job not in self._waiting
            if job.waiting or job.ended.is_set() or (begun and self._finishes):
                return
            job.stopped.set()
            self._forget(job)
            if not begun:
                self._waiting.remove(job)

    def _forget(self, job: _Job) -> None:
        if self._known.get(job.key) is job:
            del self._known[job.key]

    def _work(self) -> None:
        if self._begin is not None:
            self._begin()
        while not self._closed:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
            self._run_newest(0)

    def _run_newest(self, depth: int) -> None:
        """Do the newest job that waits, if there is one, ``depth`` others having been put aside."""
        with self._changed:
            if not self._waiting:
                return
            job = self._waiting.pop()

        def pause() -> None:
            if not job.stopped.is_set() and not self._finishes and depth < _DEEPEST:
                self._run_newest(depth + 1)
            if job.stopped.is_set():
                raise Stopped

        try:
            job.answer = job.run(pause)
        except BaseException as error:  # noqa: BLE001  whoever waits for it raises it
            job.error = error
        else:
            if self._memory is not None:
                self._memory.keep(job.key, job.answer)
        with self._changed:
            self._forget(job)
        job.end()

    def close(self, patience: float = 5.0) -> None:
        """Stop what runs, and let the threads end."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            for job in self._known.values():
                job.stopped.set()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(patience)
