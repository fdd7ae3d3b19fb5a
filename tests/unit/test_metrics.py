"""Metrics of several worker processes: `/metrics` of each tells the sum, and a dead worker's counters stay."""

from __future__ import annotations

import os
import subprocess
import sys

from mlflow_catdog.runtime import metrics

# A supervisor and its workers: two count beside each other, then one counts that replaces them.
_WORKER = """
import sys
from mlflow_catdog.runtime.metrics import Metrics
counted = Metrics("cats", "3")
counted.count([{"label": "cat", "confidence": 0.9}], [b"image"])
counted.active.inc()
print(counted.render().decode() if sys.argv[1:] else "counted", flush=True)
sys.stdin.read()
"""
_SUPERVISOR = f"""
import subprocess, sys
from mlflow_catdog.runtime import metrics
words = [sys.executable, "-c", {_WORKER!r}]
pipes = {{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}}
with metrics.shared_between_workers():
    with subprocess.Popen(words, **pipes) as first:
        assert first.stdout.readline() == "counted\\n"
        with subprocess.Popen([*words, "render"], **pipes) as second:
            print(second.communicate()[0])
        first.stdin.close()
    metrics.forget_worker(first.pid)
    metrics.forget_worker(second.pid)
    with subprocess.Popen([*words, "render"], **pipes) as third:
        print(third.communicate()[0])
"""


def test_the_workers_of_a_container_count_together_and_the_dead_are_no_longer_active():
    environment = {name: value for name, value in os.environ.items() if name != metrics.MULTIPROCESS_DIR}
    words = [sys.executable, "-c", _SUPERVISOR]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    images = [line for line in lines if line.startswith("catdog_images_total")]
    active = [line for line in lines if line.startswith("http_server_active_requests ")]
    assert [line.rpartition(" ")[2] for line in images] == ["2.0", "3.0"]
    for name in ("confidence", "image_bytes"):
        counts = [line.rpartition(" ")[2] for line in lines if line.startswith(f"catdog_{name}_count")]
        assert counts == ["2.0", "3.0"]
    assert active == ["http_server_active_requests 2.0", "http_server_active_requests 1.0"]
    assert 'catdog_model_info{name="cats",version="3"} 1.0' in lines
