"""The parameters of an audit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from catdog_pyfunc.errors import InvalidSetting
from catdog_pyfunc.pipeline.training.config import IMAGENET, NONE


@dataclass(frozen=True)
class AuditConfig:
    """The images to audit, and the backbone that embeds them.

    Attributes:
        data: Folder with one sub-folder per class, "sample" or "oxford-iiit-pet".
        weights: 'imagenet', or path to a state_dict.
        backbone: Classification model of torchvision.models that ends in globally pooled features.
        output: CSV file to write the table to, besides the run; none by default.

    Raises:
        InvalidSetting: A parameter cannot be used.
    """

    data: str
    weights: str = IMAGENET
    backbone: str = "mobilenet_v2"
    output: str = ""

    def __post_init__(self) -> None:
        if self.weights == NONE:
            raise InvalidSetting(
                "weights is 'none', but random features tell nothing; give 'imagenet' or a state_dict's path"
            )
        if self.output and not (self.output.endswith(".csv") and Path(self.output).expanduser().resolve().parent.is_dir()):
            raise InvalidSetting(f"output is {self.output!r}; give the name of a .csv file in a folder that exists")
