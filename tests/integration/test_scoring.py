"""Scoring as a command, killed in the middle of many images."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from catdog_pyfunc.pipeline.scoring.output import PART_ROWS
from tests.project import MODEL, Project

IMAGES = PART_ROWS + 1000


@pytest.mark.slow
def test_a_command_that_was_killed_goes_on_and_each_image_is_there_once(project: Project, drawn: Path, tmp_path: Path):
    images = [file.read_bytes() for file in sorted(drawn.glob("val/*/*.jpg"))]
    table = pa.table({"path": [f"{number:05}" for number in range(IMAGES)], "image": (images * IMAGES)[:IMAGES]})
    pq.write_table(table, tmp_path / "images.parquet", row_group_size=500)
    command = [
        sys.executable,
        "-m",
        "scripts.score",
        "--input",
        str(tmp_path / "images.parquet"),
        "--output",
        str(tmp_path / "out"),
    ]
    process = subprocess.Popen(command, env=dict(project.environment), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (tmp_path / "out" / "part-00000.parquet").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=30) == -signal.SIGKILL
    done = project.run("-e", "score", "-P", f"input={tmp_path / 'images.parquet'}", "-P", f"output={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert f"going on: {PART_ROWS} of {IMAGES} images have their predictions" in done.stderr
    assert f"{IMAGES} predictions in {tmp_path / 'out'} (" in done.stdout
    scored = ds.dataset(tmp_path / "out", format="parquet").to_table()
    assert scored["path"].to_pylist() == [f"{number:05}" for number in range(IMAGES)]
    assert scored["error"].null_count == IMAGES
    metadata = pq.read_schema(tmp_path / "out" / "part-00001.parquet").metadata
    assert metadata[b"catdog.model"].decode() == f"models:/{MODEL}/2"
