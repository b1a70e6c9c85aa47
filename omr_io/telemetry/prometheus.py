"""Statistics for Prometheus, which asks for them when it wants them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self

from omr_io.errors import ConfigError
from omr_io.telemetry.stats import LoaderStats

_COUNTERS = {
    "batches": "Batches yielded",
    "steps": "Optimiser steps yielded",
    "samples": "Samples yielded",
    "images": "Images yielded",
    "tokens": "Real tokens yielded",
    "label_tokens": "Tokens with a loss yielded",
    "capacity": "Tokens that the packs could have held",
    "bytes_read": "Bytes of the samples' parts",
    "failures": "Samples yielded with a blank image",
    "seconds": "Seconds of iteration",
    "waited_seconds": "Seconds that the consumer waited",
    "fetched_bytes": "Bytes that came over the network",
    "requests": "Requests sent",
    "retries": "Requests sent again",
    "cache_hits": "Reads that the local cache served",
    "cache_misses": "Reads that waited for the network",
}
_GAUGES = {
    "last_wait": "Seconds that the consumer waited for the last step",
    "p50_wait": "Median of the latest steps' waits in seconds",
    "p99_wait": "99th percentile of the latest steps' waits in seconds",
    "queue_batches": "Batches that wait for the consumer",
    "queue_bytes": "Bytes of the batches that wait",
    "quarantined": "Distinct samples that failed",
    "cache_bytes": "Bytes that the local cache holds",
    "efficiency": "Real tokens / capacity",
}


class PrometheusMetrics:
    """Metrics named omr_io_loader_*, read from a loader whenever they are scraped.

    loader = omr_io.DataLoader(...)
    with PrometheusMetrics(loader.stats, {"rank": str(loader.rank)}):
        prometheus_client.start_http_server(9400)

    Args:
        stats: gives the statistics; called on the thread that serves a scrape.
        labels: added to every metric; "decoder" is there already.
        registry: a `prometheus_client` registry; None: the default one.

    Raises:
        ConfigError: prometheus_client is not installed, or the registry has another loader's.
    """

    def __init__(
        self,
        stats: Callable[[], LoaderStats],
        labels: Mapping[str, str] | None = None,
        registry: Any = None,
    ) -> None:
        self._client = _import_client()
        self._stats = stats
        self._labels = dict(labels or {})
        self._registry = self._client.REGISTRY if registry is None else registry
        try:
            self._registry.register(self)
        except ValueError as error:  # of names that are there twice
            raise ConfigError(
                "the registry has the metrics of another loader",
                mend="Give each loader a registry of its own: registry=prometheus_client."
                "CollectorRegistry(), and start_http_server(PORT, registry=registry)",
            ) from error

    def collect(self) -> Iterator[Any]:
        """The metrics now; `prometheus_client` calls it."""
        stats = self._stats()
        values = stats.as_dict()
        labels = {"decoder": stats.decoder} | self._labels
        core = self._client.core
        kinds = (
            (_COUNTERS, core.CounterMetricFamily),
            (_GAUGES, core.GaugeMetricFamily),
        )
        for words, kind in kinds:
            for name, help_ in words.items():
                family = kind(f"omr_io_loader_{name}", help_, labels=list(labels))
                family.add_metric(list(labels.values()), values[name])
                yield family

    def close(self) -> None:
        """Take the metrics out of the registry; may be repeated."""
        registry, self._registry = self._registry, None
        if registry is not None:
            registry.unregister(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _import_client() -> Any:
    try:
        import prometheus_client
        import prometheus_client.core
    except ImportError as error:
        raise ConfigError(
            f"metrics for Prometheus need prometheus_client: {error}",
            mend='Install it: pip install "omr_io[prometheus]"',
        ) from error
    return prometheus_client
