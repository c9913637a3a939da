"""Cache compiled XLA programs on disk for the next start of a run, and record each compilation."""

import contextlib
import dataclasses
import hashlib
import logging
import platform
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from etils import epath
from jax.experimental.compilation_cache import compilation_cache

from inti_jax.distributed import agreement
from inti_jax.host import paths, stores
from inti_jax.runs import layout

log = logging.getLogger("inti_jax")

_TRACED = "/jax/core/compile/jaxpr_trace_duration"
_LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"
_COMPILED = "/jax/core/compile/backend_compile_duration"
_CACHE_HIT = "/jax/compilation_cache/cache_hits"

_USERS_BYTES = 2 * 10**9  # the most that the user's cache takes: JAX removes what was unused longest


@contextlib.contextmanager
def cached(workdir: Path) -> Iterator[None]:
    """Use a cache in `workdir` for programs that take a second or more to compile, until the context ends.

    Does nothing where JAX was given another directory (`JAX_COMPILATION_CACHE_DIR`). Of several processes JAX
    lets only the first one write.
    """
    if _is_set():
        yield
        return
    directory = _made(layout.compiled_dir(workdir))
    # The path has to be the same in all processes, since XLA is given it.
    with paths.plain(directory, agreement.gather) as plain:
        _keep_in(str(plain))
        try:
            yield
        finally:
            _keep_in(None)


def cache_for_user() -> None:
    """Use a cache of the user's, as `cached`, until the process ends.

    It is for commands that use a run, whose directory may not be theirs to write to. Where the user has no
    place for a cache either, programs are compiled each time.
    """
    if _is_set():
        return
    try:
        directory = _made(epath.Path(stores.cache(), "compiled"))
    except OSError as error:
        log.warning("compiled programs are not kept for the next start: %s", error)
        return
    jax.config.update("jax_compilation_cache_max_size", _USERS_BYTES)
    _keep_in(str(directory))


def _is_set() -> bool:
    return jax.config.jax_compilation_cache_dir is not None  # type: ignore[attr-defined]


def _made(directory: epath.Path) -> epath.Path:
    """Make the cache for this kind of machine, in `directory`."""
    if jax.default_backend() == "cpu":
        # JAX's key does not tell processors apart, and code for another may stop at an illegal instruction.
        directory /= f"cpu-{_processor()}"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _keep_in(directory: str | None) -> None:
    """Set the directory of JAX's compilation cache; None turns the cache off."""
    jax.config.update("jax_compilation_cache_dir", directory)
    compilation_cache.reset_cache()  # the cache opens its directory only once


def _processor() -> str:
    """Compute a short hash of the processor's model and instruction set."""
    facts = {platform.machine()}
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open() as lines:
        facts |= {line for line in lines if line.startswith(("model name", "flags", "Features"))}
    return hashlib.sha256("".join(sorted(facts)).encode()).hexdigest()[:12]


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One program: its function's name, the seconds until it could run, and if the disk cache had it."""

    what: str
    seconds: float
    cached: bool


class Compilations:
    """Recorder of the programs that this process compiles, until it is closed."""

    def __init__(self) -> None:
        self._found: list[Compiled] = []
        self._threads = threading.local()
        jax.monitoring.register_event_listener(self._on_event)
        jax.monitoring.register_event_duration_secs_listener(self._on_duration)

    def take(self) -> list[Compiled]:
        """Return the programs that were compiled since the last call."""
        found, self._found = self._found, []
        return found

    def close(self) -> None:
        """Stop recording."""
        jax.monitoring.unregister_event_listener(self._on_event)
        jax.monitoring.unregister_event_duration_listener(self._on_duration)

    # A program is traced, lowered, and then compiled or found on disk, all in one thread.

    def _on_event(self, event: str, **_: Any) -> None:
        if event == _CACHE_HIT:
            self._threads.hit = True

    def _on_duration(self, event: str, duration_secs: float, **facts: Any) -> None:
        if event not in (_TRACED, _LOWERED, _COMPILED):
            return
        if not hasattr(self._threads, "seconds"):
            self._threads.seconds = defaultdict(float)
        what = facts["fun_name"].removeprefix("jit(").removesuffix(")")
        self._threads.seconds[what] += duration_secs
        if event == _COMPILED:
            hit = getattr(self._threads, "hit", False)
            self._found.append(Compiled(what, self._threads.seconds[what], hit))
            self._threads.hit = False
            self._threads.seconds.clear()  # including those of functions traced as a part of it


def peak_bytes(compiled: jax.stages.Compiled) -> int | None:
    """Return the most bytes that a program takes on a device, with its arguments; None where unknown."""
    memory = compiled.memory_analysis()
    if memory is None:
        return None
    peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
    return int(peak - memory.alias_size_in_bytes)
