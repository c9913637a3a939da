"""Check that all processes see the same files and are about to compute the same thing.

Each process sends its facts to process 0. All processes then raise the answer of process 0: one line that
names a process and the difference.
"""

import hashlib
import itertools
import json
import socket
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from inti_jax.distributed import coordination, liveness
from inti_jax.errors import UserError, naming
from inti_jax.host import stores

# Hosts may differ in where they keep files and in how they load them.
_OWN = (
    "config.model.pretrained",
    "config.data.data_dir",
    "config.data.cache_dir",
    "config.data.cache_gb",
    "config.data.workers",
    "config.data.threads",
)
# Seconds in which a file that one host wrote should appear on the others: network file systems lag.
_VISIBLE = 20
# Milliseconds. The watch ends a process that waits in vain long before that.
_LONGEST = 24 * 3600 * 1000

Facts = dict[str, Any]

# All processes count the same rounds in the same order. A key of the service can be set only once.
_rounds = itertools.count()


def check_workdir(workdir: Path) -> None:
    """Check that every process sees the files that process 0 writes to `workdir`.

    Raises UserError, on all processes, where one does not.
    """
    if jax.process_count() == 1:
        return
    liveness.note("checking that all processes share the workdir", slow=True)
    if url := stores.origin(workdir):
        _agree({"--workdir": url}, _different)
        return
    client, first = coordination.client(), jax.process_index() == 0
    key, probe = f"inti_jax/probe/{next(_rounds)}", workdir / "seen-by-all"
    if first:
        workdir.mkdir(parents=True, exist_ok=True)
        with naming(probe):
            probe.write_text(uuid.uuid4().hex)
        client.key_value_set(key, probe.read_text())
    try:
        token = client.blocking_key_value_get(key, _LONGEST)
        _agree({"sees": _sees(probe, token)}, lambda ours, theirs: _unshared(workdir, ours, theirs))
    finally:
        if first:
            probe.unlink(missing_ok=True)


def check(record: Facts, validation_sha256: str, *, mode: str, step: int) -> None:
    """Check that every process is about to compute the same thing as process 0.

    Raises UserError, on all processes, where one is not. `record` is the run's record as flat
    `{"config.a.b": value}`. `step` is the step that they start from.
    """
    if jax.process_count() == 1:
        return
    liveness.note("checking that all processes agree", slow=True)
    record_facts = {key: value for key, value in record.items() if key not in _OWN}
    facts = {
        "the version of the code": _code(),
        "the version of JAX": jax.__version__,
        "--mode": mode,
        "the devices of its host": f"{jax.local_device_count()} {jax.local_devices()[0].device_kind}",
        "the step to start from": step,
        "the validation data's hash": validation_sha256,
        **record_facts,
    }
    _agree(facts, _different)


def gather(number: int) -> list[int]:
    """Gather a number from every process, in the order of the processes."""
    if jax.process_count() == 1:
        return [number]
    client, prefix = coordination.client(), f"inti_jax/gather/{next(_rounds)}/"
    client.key_value_set(f"{prefix}{jax.process_index()}", str(number))
    return [
        int(client.blocking_key_value_get(f"{prefix}{index}", _LONGEST))
        for index in range(jax.process_count())
    ]


def _agree(facts: Facts, complaint: Callable[[Facts, Facts], str | None]) -> None:
    """Send `facts` to process 0, and raise its complaint on all processes.

    `complaint` takes the facts of process 0 and those of another process. It returns a message where they do
    not agree. Raises UserError with the first such message.
    """
    client, index = coordination.client(), jax.process_index()
    prefix = f"inti_jax/agree/{next(_rounds)}/"
    posted = {"host": socket.gethostname(), "process": index, **facts}
    client.key_value_set(f"{prefix}{index}", json.dumps(posted, default=repr))
    if index == 0:
        found = ""
        ours = json.loads(client.blocking_key_value_get(f"{prefix}0", _LONGEST))
        for other in range(1, jax.process_count()):
            theirs = json.loads(client.blocking_key_value_get(f"{prefix}{other}", _LONGEST))
            found = found or complaint(ours, theirs) or ""
        client.key_value_set(f"{prefix}answer", found)
    answer = client.blocking_key_value_get(f"{prefix}answer", _LONGEST)
    if answer:
        raise UserError(answer)


def _sees(probe: Path, token: str) -> bool:
    """Wait until `probe` holds `token`; return False where it does not in time."""
    deadline = time.monotonic() + _VISIBLE
    while True:
        try:
            if probe.read_text() == token:
                return True
        except OSError:
            pass
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)


def _unshared(workdir: Path, ours: Facts, theirs: Facts) -> str | None:
    if theirs["sees"]:
        return None
    return (
        f"{_name(theirs)} does not see what {_name(ours)} writes to {workdir}: give all processes the same "
        "--workdir, on storage that all hosts share"
    )


def _different(ours: Facts, theirs: Facts) -> str | None:
    for key in dict.fromkeys([*ours, *theirs]):
        if key not in ("host", "process") and ours.get(key) != theirs.get(key):
            what = f"`{key.removeprefix('config.')}`" if key.startswith("config.") else key
            return (
                f"{_name(theirs)} differs from {_name(ours)}: {what} is {theirs.get(key)!r} there, "
                f"{ours.get(key)!r} here; start all processes alike"
            )
    return None


def _name(facts: Facts) -> str:
    return f"process {facts['process']} on {facts['host']}"


def _code() -> str:
    """Hash this package's source."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]
