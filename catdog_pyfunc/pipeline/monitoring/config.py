"""Which version to look at, what it has predicted, and what counts as drift."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from catdog_pyfunc.errors import InvalidSetting
from catdog_pyfunc.pipeline.registry.versions import NAME

QUANTITIES = ("in_domain", "domain_score", "label", "confidence", "error", "image_bytes")
"""What is compared, in the order of tables and plots."""
_DURATION = re.compile(r"([1-9]\d*[smhdw])+")


@dataclass(frozen=True)
class DriftConfig:
    """A version, what it has predicted since, and what counts as drift.

    Attributes:
        version: The version's number.
        source: What the version has predicted: URL of a Prometheus that scrapes its deployment, output folder of score, or
            images as score takes them, which are scored first.
        since: How far to look back in a Prometheus, such as 30m, 24h or 7d; of other sources, everything counts.
        name: The registered model.
        alpha: Probability of a false alarm, over all quantities together.
        min_effect: Smallest change that counts as drift, however certain it is: of a fraction, or of the fraction below any
            value.
        ignore: Quantities that are shown but do not decide, separated by commas, such as label,image_bytes.
    """

    version: str
    source: str
    since: str = "24h"
    name: str = NAME
    alpha: float = 0.01
    min_effect: float = 0.02
    ignore: str = ""

    def __post_init__(self) -> None:
        if urlsplit(self.source).password:
            raise InvalidSetting("source is a URL with a password, which the run would show: write it into ~/.netrc")
        if not _DURATION.fullmatch(self.since):
            raise InvalidSetting(f"since is {self.since!r}; give a duration such as 30m, 24h or 7d")
        if not 0 < self.alpha < 1:
            raise InvalidSetting(f"alpha is {self.alpha:g}; give a number between 0 and 1")
        if not 0 <= self.min_effect < 1:
            raise InvalidSetting(f"min_effect is {self.min_effect:g}; give 0 or more, and less than 1")
        unknown = self.ignored - set(QUANTITIES)
        if unknown or self.ignored == set(QUANTITIES):
            raise InvalidSetting(f"ignore is {self.ignore!r}; give some, but not all, of {', '.join(QUANTITIES)}")

    @property
    def ignored(self) -> set[str]:
        """The quantities that do not decide."""
        return {name.strip() for name in self.ignore.split(",")} - {""}

    @property
    def model_uri(self) -> str:
        """The version's URI."""
        return f"models:/{self.name}/{self.version}"
