"""The public API: closed, typed, documented by examples that run, and cheap to import."""

from __future__ import annotations

import builtins
import doctest
import inspect
import re
import subprocess
import sys
import typing
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest

import catdog_pyfunc
from catdog_pyfunc import errors, flavor
from catdog_pyfunc.network import Network
from tests.unit.conftest import DESCRIPTION, REFERENCE_EMBEDDINGS

PUBLIC = {name: getattr(catdog_pyfunc, name) for name in catdog_pyfunc.__all__}
CLASSES = [value for value in PUBLIC.values() if inspect.isclass(value)]


def functions() -> dict[str, object]:
    """Every public function, and every public method of the project's own classes."""
    found = {name: value for name, value in PUBLIC.items() if inspect.isfunction(value)}
    for cls in CLASSES:
        for name, member in vars(cls).items():
            if name == "__init__" or not name.startswith("_"):
                function = getattr(member, "__func__", member)
                if inspect.isfunction(function):
                    found[f"{cls.__name__}.{name}"] = function
    return found


def named_types(annotation: object) -> set[type]:
    """The classes in an annotation, at any depth."""
    if inspect.isclass(annotation) and not typing.get_args(annotation):
        return {annotation}
    return set().union(*(named_types(argument) for argument in typing.get_args(annotation)), set())


def hints(function: object) -> dict[str, object]:
    # Names that are imported for type checkers only.
    return typing.get_type_hints(function, localns={"Network": Network})


def test_all_lists_what_can_be_imported_in_order():
    assert catdog_pyfunc.__all__ == sorted(catdog_pyfunc.__all__)
    exposed = {name for name in dir(catdog_pyfunc) if not name.startswith("_")}
    modules = {name for name in exposed if inspect.ismodule(getattr(catdog_pyfunc, name))}
    helpers = {"annotations", "import_module", "Any", "TYPE_CHECKING"}
    assert exposed - modules - helpers == set(catdog_pyfunc.__all__)
    with pytest.raises(AttributeError, match="module 'catdog_pyfunc' has no attribute 'nothing'"):
        _ = catdog_pyfunc.nothing


def test_every_public_signature_is_typed_and_names_only_public_types():
    for name, function in functions().items():
        parameters = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
        assert not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters), name
        annotations = hints(function)
        assert {p.name for p in parameters} - {"self", "cls"} <= set(annotations), name
        for annotation in annotations.values():
            ours = {cls for cls in named_types(annotation) if cls.__module__.startswith("catdog_pyfunc")}
            assert ours <= set(CLASSES), f"{name} names {ours - set(CLASSES)}"


def test_every_public_attribute_has_a_public_type():
    for cls in CLASSES:
        if hasattr(cls, "__dataclass_fields__"):
            for name, annotation in hints(cls).items():
                ours = {named for named in named_types(annotation) if named.__module__.startswith("catdog_pyfunc")}
                assert ours <= set(CLASSES), f"{cls.__name__}.{name}"


def test_every_documented_error_is_public():
    for name, function in functions().items():
        section = re.search(r"Raises:\n(.*?)(?:\n\n|\Z)", inspect.getdoc(function) or "", re.DOTALL)
        for error in re.findall(r"^ +(\w+):", section[1] if section else "", re.MULTILINE):
            assert error in PUBLIC or hasattr(builtins, error), f"{name}: {error}"


def test_every_public_name_and_parameter_is_documented():
    for name, value in PUBLIC.items():
        assert inspect.getdoc(value), name
    for name, function in functions().items():
        cls = PUBLIC.get(name.removesuffix(".__init__"))
        documented = cls if hasattr(cls, "__dataclass_fields__") else function  # a dataclass documents its attributes
        doc, parameters = inspect.getdoc(documented) or "", set(inspect.signature(function).parameters)  # type: ignore[arg-type]
        for parameter in parameters - {"self", "cls"}:
            simple = len(parameters) <= 2 and doc  # one parameter, described in the summary
            assert simple or re.search(rf"^ +{parameter}: ", doc, re.MULTILINE), f"{name} does not document {parameter}"


def test_every_error_has_one_base():
    own = [cls for cls in vars(errors).values() if inspect.isclass(cls) and cls.__module__ == errors.__name__]
    assert all(issubclass(cls, errors.CatDogError) for cls in own)
    assert all(cls.__name__ in (errors.__doc__ or "") for cls in own)


@pytest.mark.parametrize("name", ["save_model", "log_model", "load_model"])
def test_the_examples_in_the_docstrings_run(
    name: str, tiny_network: Network, tiny_model: Path, images: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    if name == "load_model":
        (tmp_path / "model").symlink_to(tiny_model)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    names = {"catdog_pyfunc": catdog_pyfunc, "mlflow": mlflow, "np": np, "image": images[0], "network": tiny_network}
    names |= {"description": replace(DESCRIPTION, backbone="resnet18"), "reference": REFERENCE_EMBEDDINGS}
    try:
        (test,) = doctest.DocTestFinder(recurse=False).find(getattr(flavor, name), globs=names)
        assert test.examples
        report: list[str] = []
        failed, tried = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=report.append)
    finally:
        mlflow.set_tracking_uri(None)
    assert (failed, tried > 0) == (0, True), "".join(report)


def loaded_by(code: str) -> set[str]:
    code = f"import sys; {code}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_importing_the_package_loads_no_framework():
    assert not {"torch", "torchvision", "matplotlib", "mlflow", "pandas", "onnxruntime"} & loaded_by("import catdog_pyfunc")


def test_loading_a_model_for_serving_needs_no_torch():
    assert not {"torch", "torchvision", "matplotlib"} & loaded_by("import catdog_pyfunc; catdog_pyfunc.load_model")
