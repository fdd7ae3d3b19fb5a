"""Where each deployment stands, for Prometheus."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class Statuses(Collector):
    """The last look at each deployment; a collector of metrics."""

    def __init__(self) -> None:
        """No deployment is known yet."""
        self._lock = threading.Lock()
        self._looks: dict[str, tuple[float, bool]] = {}

    def only(self, names: set[str]) -> None:
        """Forget all other deployments; those that are new count as looked at now."""
        with self._lock:
            self._looks = {name: self._looks.get(name, (time.time(), False)) for name in names}

    def looked(self, name: str, *, behind: bool) -> None:
        """Record that the alias was found, and whether the deployment serves another version."""
        with self._lock:
            self._looks[name] = (time.time(), behind)

    def collect(self) -> Iterator[Metric]:
        """The metrics, for `prometheus_client`."""
        behind = GaugeMetricFamily(
            "catdog_follow_behind", "1 if the deployment serves another version than its alias names", labels=["deployment"]
        )
        looked = GaugeMetricFamily(
            "catdog_follow_last_look_timestamp_seconds",
            "When the registry last responded",
            labels=["deployment"],
        )
        with self._lock:
            for name, (at, is_behind) in self._looks.items():
                behind.add_metric([name], float(is_behind))
                looked.add_metric([name], at)
        yield behind
        yield looked
