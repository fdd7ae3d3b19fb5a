"""What a deployment's `/metrics` has counted, out of the Prometheus that scrapes it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import requests

from catdog_pyfunc.errors import InvalidData, first_line
from catdog_pyfunc.pipeline.monitoring.sample import DISTRIBUTIONS, Sample, Values

_TIMEOUT_S = 60
_MAX_VALUES = 1_000_000  # of a distribution; the test split's size limits what more of them would tell


def is_prometheus(source: str) -> bool:
    """Whether a source is a Prometheus."""
    return source.startswith(("http://", "https://"))


def read(url: str, name: str, version: str, since: str) -> Sample:
    """Read what a version has predicted, over all deployments that this Prometheus scrapes.

    Args:
        url: Address of the Prometheus.
        name: Of the registered model.
        version: Of it.
        since: How far to look back, such as "24h".

    Returns:
        The sample; its distributions are known in the server's buckets.

    Raises:
        InvalidData: There is no Prometheus, or it does not answer as one does.
    """
    model = f"{{model_name={_quoted(name)}, model_version={_quoted(version)}}}"

    def increase(metric: str, by: str = "") -> dict[str, float]:
        return _query(url, f"sum by ({by}) (increase({metric}{model}[{since}]))", by)

    def total(metric: str) -> int:
        return round(sum(increase(metric).values()))

    buckets = {kind: _buckets(increase(f"catdog_{kind}_bucket", "le")) for kind in DISTRIBUTIONS}
    return Sample(
        labels={label: round(count) for label, count in increase("catdog_images_total", "label").items()},
        out_of_domain=total("catdog_out_of_domain_images_total"),
        errors=total("catdog_image_errors_total"),
        values={kind: _expanded(*bucket) for kind, bucket in buckets.items()},
        bounds={kind: bounds for kind, (bounds, _) in buckets.items()},
    )


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _query(url: str, query: str, by: str) -> dict[str, float]:
    """The value of each label; without `by`, that of ""."""
    try:
        response = requests.get(f"{url.rstrip('/')}/api/v1/query", params={"query": query}, timeout=_TIMEOUT_S)
        answer: Any = response.json()
        found = answer["data"]["result"]
    except requests.RequestException as error:  # a response that is no JSON, too
        raise InvalidData(f"source {url} does not answer as Prometheus does ({first_line(error)}): give its URL") from None
    except (KeyError, TypeError):
        raise InvalidData(f"source {url} refused {query} (HTTP {response.status_code}): {response.text[:200]}") from None
    return {each["metric"].get(by, ""): float(each["value"][1]) for each in found}


def _buckets(cumulative: dict[str, float]) -> tuple[Values, Values]:
    """Upper bounds and counts of a histogram whose buckets count all values up to `le`."""
    pairs = sorted((math.inf if bound == "+Inf" else float(bound), count) for bound, count in cumulative.items())
    bounds, counts = np.array(pairs or [(math.inf, 0.0)]).T
    return bounds, np.maximum(np.diff(counts, prepend=0), 0)


def _expanded(bounds: Values, counts: Values) -> Values:
    """Each bound as often as its bucket counts; Prometheus extrapolates, so counts may be fractions."""
    scale = min(1.0, _MAX_VALUES / max(counts.sum(), 1))
    return np.repeat(bounds, np.rint(counts * scale).astype(int))
