"""Check the exit status, stdout and stderr of commands as a shell sees them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, sys
from inti_jax.errors import UserError
from inti_jax.host.command import run_command

def main():
    for text in sys.argv[2:]:
        print(text)
    if sys.argv[1] == "fail":
        raise UserError("no " + sys.argv[2])
    if sys.argv[1] == "bug":
        raise ConnectionError("of a socket")
    for number in range(int(sys.argv[1])):
        print("line", number)

run_command(main)
"""


def start(*arguments, unbuffered=False, **streams):
    environment = os.environ | {"PYTHONUNBUFFERED": "1" if unbuffered else ""}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments],
        env=environment,
        **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams),
    )


def test_names_of_any_bytes_are_printed_as_they_are():
    name = b"a\xff\xc3b \xe2\x86\x92"
    process = start("fail", name)
    assert process.communicate() == (name + b"\n", b"error: no " + name + b"\n")
    assert process.returncode == 1


def test_what_the_output_cannot_encode_is_escaped():
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, "0", b"a\xffb \xe2\x86\x92"], env=environment, capture_output=True
    )
    assert (process.stdout, process.stderr) == (b"a\xff\\u2192\n".replace(b"\\", b"b \\"), b"")


@pytest.mark.parametrize("unbuffered", [False, True])
@pytest.mark.parametrize("lines", ["1", "100000"])
def test_a_reader_that_has_gone_ends_the_command_quietly(lines, unbuffered):
    reading, writing = os.pipe()
    os.close(reading)
    process = start(lines, stdout=writing, unbuffered=unbuffered)
    os.close(writing)
    assert process.communicate()[1] == b""
    assert process.returncode == 141  # as a shell says of what SIGPIPE ended


@pytest.mark.parametrize("unbuffered", [False, True])
def test_output_that_cannot_be_written_is_one_line(unbuffered):
    with Path("/dev/full").open("w") as full:
        process = start("1", stdout=full, unbuffered=unbuffered)
        assert process.communicate()[1] == b"error: the output: No space left on device\n"
        assert process.returncode == 1


def test_an_error_keeps_its_status_where_nobody_reads_it():
    with Path("/dev/full").open("w") as full:
        process = start("fail", "x", stderr=full)
        assert process.communicate()[0] == b"x\n"
        assert process.returncode == 1


def test_a_bug_keeps_its_traceback():
    process = start("bug", "x")
    assert b"ConnectionError: of a socket" in process.communicate()[1]
    assert process.returncode == 1
