"""Training on real photos with ImageNet weights, if the environment names them."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.project import make_project


def test_real_photos_are_classified(real_photos: Path, real_weights: Path, tmp_path: Path):
    project = make_project(tmp_path / "project")
    words = ["-P", f"data={real_photos}", "-P", f"weights={real_weights}"]
    for _ in range(2):
        done = project.run(*words)
        assert done.returncode == 0, done.stderr
        accuracy = float(re.search(r"test accuracy (\d\.\d+)", done.stdout)[1])  # type: ignore[index]
        assert accuracy >= 0.98
    assert "embedding pictures" not in done.stderr, "the second run must find every embedding in the cache"
    inputs = project.client().get_run(re.search(r"runs:/(\w+)/", done.stdout)[1]).inputs  # type: ignore[index]
    counts = {json.loads(entry.dataset.profile)["pictures"] for entry in inputs.dataset_inputs}
    assert counts == {2000, 500, 1000}
