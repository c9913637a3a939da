"""Train without the report, which takes longer than the few steps of a test."""

import contextlib
from collections.abc import Iterator
from unittest import mock


@contextlib.contextmanager
def without_reports() -> Iterator[None]:
    """Let runs write no report; also a decorator."""
    from inti_jax.reports import writing  # late: who sets JAX up first may import this module

    with mock.patch.object(writing, "write_own"):
        yield
