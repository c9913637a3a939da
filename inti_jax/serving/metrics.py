"""Count what the service does, in Prometheus's format."""

import functools
from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The figures of one service since its start."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        histogram = functools.partial(Histogram, registry=self.registry)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests = Counter(
            "inti_jax_requests",
            "Requests for predictions by the status of their answer; 499 is a client that has gone.",
            ["status"],
            registry=self.registry,
        )
        self.seconds = histogram(
            "inti_jax_request_seconds", "From a request's headers to its answer.", buckets=_SECONDS
        )
        self.decoding = histogram("inti_jax_decode_seconds", "Decoding of a video.", buckets=_SECONDS)
        self.computing = histogram("inti_jax_batch_seconds", "The model's work on a batch.", buckets=_SECONDS)
        self.sizes = histogram("inti_jax_batch_size", "Videos in a batch.", buckets=_SIZES)
        self.received = Counter(
            "inti_jax_received_bytes",
            "Bytes of requests' bodies and of fetched videos.",
            registry=self.registry,
        )
        self.restarts = Counter(
            "inti_jax_decoder_restarts",
            "Decoders ended since they took too long, crashed, or worked for a client that had gone.",
            registry=self.registry,
        )

    def watch(self, name: str, meaning: str, read: Callable[[], float]) -> None:
        """Show what `read` gives at the moment."""
        Gauge(f"inti_jax_{name}", meaning, registry=self.registry).set_function(read)

    def text(self) -> bytes:
        """Format all figures."""
        return generate_latest(self.registry)
