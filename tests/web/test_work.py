import asyncio
import threading

import pytest

from multihead.web import Lane, Memory, Stopped


@pytest.fixture
def lane():
    made = []

    def make(*given, **options):
        made.append(Lane(*given, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


async def here():
    return False


async def until(happened):
    """Wait for something that a thread does."""
    for _ in range(1000):
        if happened():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it did not happen")


def test_the_newest_is_first(lane):
    done, first = [], threading.Event()

    def work(name):
        def run(pause):
            if name == "first":
                first.wait(20)
            done.append(name)
            return name.encode()

        return run

    async def main():
        one = lane()
        asked = [asyncio.create_task(one.answer("first", work("first"), here))]
        await until(lambda: not one._waiting and one._known)
        for name in ("old", "middle", "new"):
            asked.append(asyncio.create_task(one.answer(name, work(name), here)))
            await asyncio.sleep(0)
        # asked for once more, the oldest is the newest
        asked.append(asyncio.create_task(one.answer("old", work("never"), here)))
        await asyncio.sleep(0)
        first.set()
        return await asyncio.gather(*asked)

    assert asyncio.run(main()) == [b"first", b"old", b"middle", b"new", b"old"]
    assert done == ["first", "old", "new", "middle"]


def test_the_newest_is_done_between_pieces_of_an_older_one(lane):
    done, begun = [], threading.Event()

    def long(pause):
        begun.set()
        while "short" not in done:
            pause()
        done.append("long")
        return b"long"

    async def main():
        one = lane()
        asked = [asyncio.create_task(one.answer("long", long, here))]
        await until(begun.is_set)
        asked.append(asyncio.create_task(one.answer("short", lambda pause: done.append("short") or b"short", here)))
        return await asyncio.gather(*asked)

    assert asyncio.run(main()) == [b"long", b"short"]
    assert done == ["short", "long"]


def test_a_thread_begins_with_what_it_is_told(lane):
    told = []

    async def main():
        one = lane(begin=lambda: told.append(threading.current_thread()))
        for key in range(2):
            assert (
                await one.answer(key, lambda pause: str(threading.current_thread() in told).encode(), here) == b"True"
            )

    asyncio.run(main())
    assert len(told) == 1


def test_who_leaves_ends_the_work(lane):
    begun, ended = threading.Event(), []

    def run(pause):
        begun.set()
        try:
            while True:
                pause()
        except Stopped:
            ended.append("stopped")
            raise

    async def gone():
        return begun.is_set()

    async def main():
        one = lane()
        with pytest.raises(Stopped):
            await one.answer("key", run, gone)
        await until(lambda: ended)
        # and the key may be asked for anew
        assert await one.answer("key", lambda pause: b"again", here) == b"again"

    asyncio.run(main())
    assert ended == ["stopped"]


def test_work_that_waits_is_not_begun_for_nobody(lane):
    free, ran = threading.Event(), []

    async def gone():
        return True

    async def main():
        one = lane()
        first = asyncio.create_task(one.answer("first", lambda pause: b"1" if free.wait(20) else b"", here))
        await until(lambda: not one._waiting and one._known)
        with pytest.raises(Stopped):
            await one.answer("second", lambda pause: ran.append("second") or b"", gone)
        free.set()
        assert await first == b"1"

    asyncio.run(main())
    assert not ran


def test_one_of_two_who_leaves_ends_nothing(lane):
    go = threading.Event()

    async def main():
        one = lane()
        stays = asyncio.create_task(one.answer("key", lambda pause: b"answer" if go.wait(20) else b"", here))
        await until(lambda: not one._waiting and one._known)

        async def gone():
            return True

        with pytest.raises(Stopped):
            await one.answer("key", lambda pause: b"another", gone)
        go.set()
        assert await stays == b"answer"

    asyncio.run(main())


def test_a_lane_that_finishes(lane):
    begun, go, done = threading.Event(), threading.Event(), []

    def run(pause):
        begun.set()
        go.wait(20)
        pause()
        done.append("done")
        return b""

    async def gone():
        return begun.is_set()

    async def main():
        one = lane(finishes=True)
        with pytest.raises(Stopped):
            await one.answer("key", run, gone)
        go.set()
        await until(lambda: done)

    asyncio.run(main())


def test_what_fails_fails_for_all(lane):
    def run(pause):
        raise ZeroDivisionError

    async def main():
        one = lane(Memory(100))
        found = await asyncio.gather(*(one.answer("key", run, here) for _ in range(3)), return_exceptions=True)
        assert all(isinstance(error, ZeroDivisionError) for error in found)
        assert await one.answer("key", lambda pause: b"now", here) == b"now"

    asyncio.run(main())


def test_a_closed_lane_answers_nobody(lane):
    begun = threading.Event()

    def run(pause):
        begun.set()
        while True:
            pause()

    async def main():
        one = lane()
        waits = asyncio.create_task(one.answer("key", run, here))
        await until(begun.is_set)
        one.close()
        with pytest.raises(Stopped):
            await waits
        with pytest.raises(Stopped):
            await one.answer("other", run, here)
        assert not any(thread.is_alive() for thread in one._threads)

    asyncio.run(main())


def test_memory_forgets_what_was_asked_for_longest_ago():
    memory = Memory(10)
    for name in ("a", "b", "c"):
        memory.keep(name, b"123")
    assert memory.find("a") == b"123"
    memory.keep("d", b"1234")
    assert [memory.find(name) for name in "abcd"] == [b"123", None, b"123", b"1234"]
    assert memory.bytes == 10


def test_memory_keeps_no_more_than_it_may():
    memory = Memory(10)
    memory.keep("a", b"123")
    memory.keep("a", b"1234")
    assert (memory.find("a"), memory.bytes) == (b"1234", 4)
    memory.keep("b", bytes(11))
    assert (memory.find("a"), memory.find("b"), memory.bytes) == (None, None, 0)


def test_what_is_remembered_is_not_computed_again(lane):
    ran = []

    async def main():
        one = lane(Memory(100))
        for _ in range(3):
            assert await one.answer("key", lambda pause: ran.append(1) or b"x", here) == b"x"

    asyncio.run(main())
    assert ran == [1]
