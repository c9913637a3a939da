"""Memory that a process shares with its workers, and the desk where it puts tasks for them."""

import multiprocessing
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inti_jax.data.loading import shared
from inti_jax.data.loading.shared import Desk, Memory, Place, Sent, Slots, Task


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_every_task_is_done_once_and_none_before_it_is_there(data):
    count = data.draw(st.integers(1, 6))
    workers = data.draw(st.integers(1, 4))
    tasks = [
        Task(Place(k, 3, data.draw(st.integers(0, 2**128 - 1))), 5 * k, k % 3)
        for k in range(data.draw(st.integers(1, 30)))
    ]
    desk = Desk(count)
    copies = [pickle.loads(pickle.dumps(desk)) for _ in range(workers)]
    done = {}
    events = [threading.Event() for _ in tasks]

    def work(worker):
        for k in range(worker, len(tasks), workers):
            done[k] = copies[worker].wait(k)
            with copies[worker].doing(k):
                assert desk.workers()
            events[k].set()

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(workers)]
    for thread in threads:
        thread.start()
    try:
        for k, task in enumerate(tasks):
            assert not any(event.is_set() for event in events[k:])
            desk.put(k, task)
            assert events[k].wait(10)
            assert done[k] == task
    finally:
        desk.stop()
        for thread in threads:
            thread.join()
    assert not desk.workers()
    desk.close()


def test_a_task_of_which_a_part_is_seen_is_waited_for():
    desk = Desk(2)
    desk.put(0, Task(Place(1, 2, 3), 4, 5))
    whole = desk._tasks[0].copy()
    for field in range(1, shared._CHECK + 1):
        desk._tasks[0] = whole
        desk._tasks[0, field] ^= 1
        assert not shared._is_whole(desk._tasks[0], 0)
    desk.close()


def test_who_waits_for_a_task_does_not_when_no_more_are_to_be_done():
    desk = Desk(2)

    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(desk.wait, 0)
        with pytest.raises(TimeoutError):
            waiting.result(0.1)
        desk.stop()
        assert waiting.result(10) is None
    assert not desk.workers()
    desk.close()


def test_other_processes_fill_slots_and_run_what_was_sent():
    slots, double, desk = Slots(4, (1000, 1000)), Sent(_double), Desk(4)
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_fill_by, args=(slots, desk))
    process.start()
    for k in range(4):
        desk.put(k, Task(double.place, k, 3 - k))
    process.join(30)
    assert [slots[slot].max() for slot in range(4)] == [6, 4, 2, 0]
    assert not slots.wanted  # as the process said
    assert desk.workers() == {}
    assert len(pickle.dumps((slots, desk))) < 1000
    for memory in (slots, double, desk):
        memory.close()
        memory.close()
    assert not any(slots[slot].any() for slot in range(4))  # its memory is given back


def _double(k):
    return 2 * k


def _fill_by(slots, desk):
    for k in range(4):
        task = desk.wait(k)
        with desk.doing(k):
            slots[task.slot][...] = shared.received(task.work)(task.number)
    slots.stop()


def test_what_was_closed_is_not_opened_as_another():
    closed = Memory(8)
    closed.close()
    other = Memory(8)
    assert other.place.descriptor == closed.place.descriptor  # the number is given anew
    with pytest.raises(FileNotFoundError):
        shared._opened(closed.place)
    assert len(shared._opened(other.place)) == 8
    other.close()
