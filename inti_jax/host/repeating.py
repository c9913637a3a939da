"""Repeat an action beside other work."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator

from inti_jax.errors import UserError

log = logging.getLogger("inti_jax")


@contextlib.contextmanager
def repeated(action: Callable[[], bool | None], seconds: float, name: str) -> Iterator[None]:
    """Call `action` every so many `seconds`, in a thread called `name`, until the context ends.

    An action that returns False is not called again. A UserError is logged, and the action tried again.
    """
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(seconds):
            try:
                if action() is False:
                    return
            except UserError as error:
                log.warning("%s; trying again in %g s", error, seconds)

    thread = threading.Thread(target=repeat, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
