"""`catdog_pyfunc.pipeline` lists its public interface once, and the list is closed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from types import ModuleType

import pytest

import catdog_pyfunc
from catdog_pyfunc import pipeline
from catdog_pyfunc.errors import InvalidData
from catdog_pyfunc.pipeline.data.dataset import Dataset, Example
from tests import public_api


def test_every_listed_name_is_imported_and_every_lazy_name_is_listed():
    assert all(getattr(pipeline, name) for name in pipeline.__all__)
    assert {name for names in pipeline._MODULES.values() for name in names} < set(pipeline.__all__) == set(dir(pipeline))
    with pytest.raises(AttributeError, match="no attribute 'measure'"):
        _ = pipeline.measure


def test_what_a_public_signature_names_is_public():
    assert public_api.problems(pipeline, catdog_pyfunc) == []


def test_importing_it_loads_neither_torch_nor_mlflow():
    code = "import sys, catdog_pyfunc.pipeline; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "mlflow", "click", "matplotlib"} & set(loaded)


def module(*things: object) -> ModuleType:
    made = ModuleType("made")
    for thing in things:
        if isinstance(thing, type) or callable(thing):
            setattr(made, thing.__name__, thing)
    made.__all__ = [name for name in vars(made) if not name.startswith("_")]  # type: ignore[attr-defined]
    return made


def returns(dataset: Dataset) -> list[Example]:
    """Return.

    Raises:
        InvalidData: Always.
    """
    raise InvalidData


def takes(images: Callable[[Example], int], **settings: int) -> None: ...


def test_the_check_notices_what_is_missing():
    assert public_api.problems(module(returns), module(InvalidData, Dataset)) == ["returns: Example is not public"]
    assert public_api.problems(module(returns), module(Example, Dataset)) == ["returns: raises InvalidData, not public"]
    assert public_api.problems(module(returns, Dataset), module(InvalidData, Example)) == []
    assert public_api.problems(module(takes)) == [
        "takes: Example is not public",
        "takes: **settings hides what can be given",
    ]
    fields = public_api.problems(module(Dataset), module(InvalidData))
    assert "Dataset: Example is not public" in fields
    assert "Dataset.examples: Example is not public" in fields
