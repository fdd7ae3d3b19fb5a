"""The Kubernetes manifests in deploy/kubernetes as tests read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.project import REPOSITORY

KUBERNETES = REPOSITORY / "deploy" / "kubernetes"
BASE, KSERVE = KUBERNETES / "base", KUBERNETES / "kserve"
Manifest = dict[str, Any]


def kustomization(folder: Path) -> Manifest:
    return dict(yaml.safe_load((folder / "kustomization.yaml").read_text()))


def manifests(folder: Path) -> dict[str, Manifest]:
    """Kind → manifest, of every file that the folder's kustomization lists."""
    found = [yaml.safe_load((folder / name).read_text()) for name in kustomization(folder)["resources"]]
    return {manifest["kind"]: manifest for manifest in found}


def pod() -> Manifest:
    """The Deployment's pod."""
    return dict(manifests(BASE)["Deployment"]["spec"]["template"]["spec"])


def container(pod: Manifest) -> Manifest:
    """Its only container."""
    (only,) = pod["containers"]
    return dict(only)


def amount(quantity: str) -> float:
    """A quantity as a number: cores, or bytes."""
    for suffix, factor in {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "m": 1e-3}.items():
        if quantity.endswith(suffix):
            return float(quantity.removesuffix(suffix)) * factor
    return float(quantity)
