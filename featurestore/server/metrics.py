"""What Prometheus is told, as plain families that workers can send one another.

Each sample of a worker gets the label ``worker``: a scrape of any worker brings those of all, and
sums over them are the query's. (prometheus_client's own way for several processes keeps every
counter in a file, which each request would write to, and knows no figures of the store.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from featurestore.reports import BATCH_SIZES, GatherStats, StoreStats

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4.encode()

_SECONDS = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
_LAG = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)

Family = list[Any]
"""A metric as JSON has it: name, documentation, type, and samples (name, labels, value)."""


class Metrics:
    """The figures of one worker; ``in_flight`` says how many requests it has under way."""

    def __init__(self, in_flight: Callable[[], float]) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self._seconds = Histogram(
            "featurestore_request_seconds",
            "From a request's head to the end of its answer. Status 499: the client left.",
            ("route", "method", "status"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._refused = Counter(
            "featurestore_requests_refused",
            "Requests beyond a limit: of requests, of size, of time, or of the store's waiting.",
            ("limit",),
            registry=self.registry,
        )
        self._lag = Histogram(
            "featurestore_loop_lag_seconds",
            "How much later than due the event loop came to a timer, 20 times a second.",
            buckets=_LAG,
            registry=self.registry,
        )
        Gauge(
            "featurestore_requests_in_flight", "Requests under way.", registry=self.registry
        ).set_function(in_flight)
        self.lag = self._lag.observe
        self._process: ProcessCollector | None = None
        # Looking a child up by its labels takes longer than counting.
        self._children: dict[tuple[str, str, int], Any] = {}

    def observe(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request that has ended."""
        key = (route, method, status)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._seconds.labels(route, method, str(status))
        child.observe(seconds)

    def refuse(self, limit: str) -> None:
        """Count a request beyond a limit."""
        self._refused.labels(limit).inc()

    def families(self, stats: StoreStats) -> list[Family]:
        """All figures. For a thread: those of the process are read from files."""
        if self._process is None:  # it reads a file as it is made
            self._process = ProcessCollector(registry=None)
        collected = [
            *self.registry.collect(),
            *self._process.collect(),
            *_store_families(stats),
        ]
        return [
            [
                metric.name,
                metric.documentation,
                metric.type,
                [[sample.name, sample.labels, sample.value] for sample in metric.samples],
            ]
            for metric in collected
        ]


def _store_families(stats: StoreStats) -> Iterator[Metric]:
    kinds = {"read": stats.reads, "push": stats.pushes}
    yield _batches(kinds)
    rows = CounterMetricFamily(
        "featurestore_store_rows", "Rows that reads asked for, or pushes wrote.", labels=["kind"]
    )
    overloaded = CounterMetricFamily(
        "featurestore_store_overloaded",
        "Calls that the store refused, or that waited in vain.",
        labels=["kind"],
    )
    queue = GaugeMetricFamily(
        "featurestore_store_queue", "Callers that wait for a batch.", labels=["kind"]
    )
    running = GaugeMetricFamily(
        "featurestore_store_batches_in_flight",
        "Batches that wait for the database.",
        labels=["kind"],
    )
    for kind, one in kinds.items():
        rows.add_metric([kind], one.rows)
        overloaded.add_metric([kind], one.overloaded)
        queue.add_metric([kind], one.waiting)
        running.add_metric([kind], one.in_flight)
    yield from (rows, overloaded, queue, running)
    yield GaugeMetricFamily(
        "featurestore_pool_connections", "Connections the pool may have.", stats.pool_size
    )
    yield GaugeMetricFamily(
        "featurestore_pool_connections_in_use", "Connections at work.", stats.pool_in_use
    )
    if stats.cache is not None:
        cache = stats.cache
        yield GaugeMetricFamily("featurestore_cache_entries", "Cached rows.", cache.entries)
        yield CounterMetricFamily("featurestore_cache_hits", "Reads by the cache.", cache.hits)
        yield CounterMetricFamily("featurestore_cache_misses", "Reads past it.", cache.misses)


def _batches(kinds: Mapping[str, GatherStats]) -> Metric:
    family = HistogramMetricFamily(
        "featurestore_store_batch_requests",
        "Calls that went to the database together, per batch.",
        labels=["kind"],
    )
    bounds = [*(str(float(size)) for size in BATCH_SIZES), "+Inf"]
    for kind, one in kinds.items():
        total, buckets = 0, []
        for bound, count in zip(bounds, one.batch_sizes, strict=True):
            total += count
            buckets.append((bound, float(total)))
        family.add_metric([kind], buckets, float(one.requests))
    return family


# --- all workers --------------------------------------------------------------------------


class _Collected(Collector):
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def exposition(
    workers: Mapping[int, Sequence[Family] | None], freshness: Mapping[str, float]
) -> bytes:
    """The text that Prometheus reads. For a thread.

    ``workers`` has the families of each worker by its number, None of one that did not answer;
    ``freshness`` is view → seconds.
    """
    up = GaugeMetricFamily(
        "featurestore_worker_up", "Whether the worker gave its figures.", labels=["worker"]
    )
    merged: dict[str, Metric] = {}
    for number, families in sorted(workers.items()):
        up.add_metric([str(number)], 0.0 if families is None else 1.0)
        for name, documentation, kind, samples in families or ():
            metric = merged.setdefault(name, Metric(name, documentation, kind))
            for sample, labels, value in samples:
                metric.add_sample(sample, {**labels, "worker": str(number)}, value)
    fresh = GaugeMetricFamily(
        "featurestore_view_freshness_seconds",
        "Age of the newest load that brought rows of the view.",
        labels=["view"],
    )
    for view, seconds in freshness.items():
        fresh.add_metric([view], seconds)
    return generate_latest(_Collected([up, fresh, *merged.values()]))
