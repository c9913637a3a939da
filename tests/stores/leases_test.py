"""Check that one process at a time holds a lease, whatever becomes of it."""

import logging
import signal
import subprocess
import sys
import time

import pytest

from inti_jax.errors import UserError
from inti_jax.host import leases, locks, mirrors, stores
from tests.stores.emulator import Faults

HOLDER = """
import sys, time
from inti_jax.host import leases
leases._RENEWED = 0.2
with leases.held(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(leases, "_RENEWED", 0.2)
    monkeypatch.setattr(leases, "_LOST", 1.5)


@pytest.fixture
def holder(bucket):
    """Another process that holds the lease."""
    url = f"{bucket}/run/lock"
    process = subprocess.Popen([sys.executable, "-c", HOLDER, url], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    yield url, process
    process.kill()
    process.wait()


def test_another_process_that_lives_is_named(holder):
    url, process = holder
    with pytest.raises(leases.HeldError, match=f"process {process.pid} on "), leases.held(url):
        pass
    assert process.poll() is None


def test_a_process_of_this_machine_that_was_killed_is_followed_at_once(holder):
    url, process = holder
    process.kill()
    process.wait()
    started = time.monotonic()
    with leases.held(url):
        assert time.monotonic() - started < 1
        assert b'"process"' in stores.read(url)
    assert stores.entries(url.rpartition("/")[0]) == {}


def test_one_that_does_not_renew_is_followed_after_a_while_and_stops(holder, caplog, monkeypatch):
    url, process = holder
    monkeypatch.setattr(leases, "_is_gone", lambda note: False)  # as if it were on another machine
    process.send_signal(signal.SIGSTOP)
    with caplog.at_level(logging.INFO, "inti_jax"), leases.held(url):
        process.send_signal(signal.SIGCONT)
        assert process.wait(10) == -signal.SIGTERM
        assert b'"process"' in stores.read(url)  # still this process's
    assert f"taking over {url} from process {process.pid}" in caplog.text


def test_it_is_held_through_faults_of_the_store(bucket, emulator):
    url = f"{bucket}/run/lock"
    emulator.faults = Faults(unavailable=0.2, cut=0.2)
    with leases.held(url):
        time.sleep(1)
        emulator.faults = Faults()
        with pytest.raises(leases.HeldError), leases.held(url):
            pass
    with leases.held(url):
        pass


def test_the_lock_of_a_run_in_a_store_is_a_lease(bucket):
    directory = mirrors.mirror(f"{bucket}/run")
    with locks.held(directory / "lock"):
        assert list(stores.entries(f"{bucket}/run")) == ["lock"]
        other = mirrors.mirror(f"{bucket}/run")
        with pytest.raises(locks.HeldError), locks.held(other / "lock"):
            pass


def test_a_store_that_cannot_be_written_is_an_error_of_one_line(bucket, emulator):
    emulator.faults = Faults(may_write=False)
    with pytest.raises(UserError, match=f"{bucket}/lock: no permission"), leases.held(f"{bucket}/lock"):
        pass
