"""Training on real photos with ImageNet weights, if the environment names them."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.project import make_project


def test_real_photos_are_classified(real_photos: Path, real_weights: Path, tmp_path: Path):
    project = make_project(tmp_path / "project")
    words = ["-P", f"data={real_photos}", "-P", f"weights={real_weights}"]
    for known in (False, True):
        done = project.run(*words)
        assert done.returncode == 0, done.stderr
        accuracy = float(re.search(r"test accuracy (\d\.\d+)", done.stdout)[1])  # type: ignore[index]
        assert accuracy >= 0.98
        assert ("embedding images" not in done.stderr) == known, (
            "only the first run embeds: the second finds all in the cache"
        )
    inputs = project.client().get_run(re.search(r"runs:/(\w+)/", done.stdout)[1]).inputs  # type: ignore[index]
    counts = {json.loads(entry.dataset.profile)["images"] for entry in inputs.dataset_inputs}
    assert counts == {2000, 500, 1000}
