"""Measures how training and scoring grow with the number of images: seconds, images per second, memory, disk.

Every row is one `catdog train` or `catdog score` in a process of its own, with an empty cache. "bound" is reading, decoding
and network in this process, on all cores, with nothing around them. `make bench-scale` runs it with Spark installed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import mlflow
import psutil
from images import draw_images, re_encode
from report import machine

from catdog_pyfunc import bundle, flavor
from catdog_pyfunc.cpu import available_cores
from catdog_pyfunc.engine import OnnxEngine
from catdog_pyfunc.pipeline.console import log, markdown_table
from catdog_pyfunc.preprocessing import preprocess

_BOUND_IMAGES = 2000
_STAGE = {  # what the commands print: seconds of the embedding stage, images per second
    "train": re.compile(r"embedding images.*: \d+/\d+ \((\d+) s"),
    "score": re.compile(r"\((\d+) images/s\)"),
}


@dataclass(frozen=True)
class Row:
    """One command.

    Attributes:
        task: train or score.
        engine: As the command's option.
        images: Number of images.
        seconds: Of the whole command.
        images_per_s: Of its stage that reads, decodes and runs the network.
        memory_mb: Peak resident memory of all its processes.
        disk_mb: What it leaves on disk: embeddings, or predictions.
    """

    task: str
    engine: str
    images: int
    seconds: float
    images_per_s: float
    memory_mb: float
    disk_mb: float


def main() -> None:
    """Measure the bound, then every combination."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="catdog-scale-", dir=arguments.folder) as scratch:
        photos = arguments.photos or draw_images(Path(scratch) / "drawn")
        everything = arguments.folder / "images"
        re_encode(photos, everything, max(arguments.counts))
        rows: list[Row] = []
        for count in arguments.counts:
            images = _first(everything, count, Path(scratch) / f"images-{count}")
            for engine in arguments.engines:
                for task in ("train", "score"):
                    rows.append(measure(task, engine, images, count, arguments.weights, Path(scratch)))
                    log(str(rows[-1]))
        bound = upper_bound(Path(scratch), sorted(images.rglob("*.jpg"))[:_BOUND_IMAGES])
    report = {"machine": machine(), "bound": bound, "rows": [asdict(row) for row in rows]}
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    print(f"{machine()}; bound {bound:.0f} images/s\n\n{table(rows, bound)}\nwritten: {arguments.output}")


def measure(task: str, engine: str, images: Path, count: int, weights: str, scratch: Path) -> Row:
    """Run one command; scoring uses the first training's model."""
    cache, output = scratch / "cache", scratch / "predictions"
    left = cache if task == "train" else output
    shutil.rmtree(left, ignore_errors=True)
    if task == "train":
        words = ["--data", str(images), "--weights", weights, "--registered-model", "CatDogClassifier"]
    else:
        words = ["--input", str(images), "--output", str(output), "--model-uri", "models:/CatDogClassifier/1"]
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": f"sqlite:///{scratch}/mlflow.db",
        "XDG_CACHE_HOME": str(cache),
        "SPARK_LOCAL_IP": "127.0.0.1",
    }
    started = time.monotonic()
    printed, memory_mb = _run(["catdog", task, "--engine", engine, *words], environment, scratch)
    seconds = time.monotonic() - started
    found = _STAGE[task].findall(printed)[-1]
    rate = count / float(found) if task == "train" else float(found)
    disk = sum(file.stat().st_size for file in left.rglob("*") if file.is_file())
    return Row(task, engine, count, seconds, rate, memory_mb, disk / 1e6)


def _run(command: Sequence[str], environment: Mapping[str, str], folder: Path) -> tuple[str, float]:
    """What a command prints, and the peak resident memory of its processes together, in MB."""
    peak = 0.0
    with tempfile.TemporaryFile("w+") as printed:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=printed, stderr=subprocess.STDOUT)
        while process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                parent = psutil.Process(process.pid)
                peak = max(peak, sum(child.memory_info().rss for child in [parent, *parent.children(recursive=True)]))
            time.sleep(0.5)
        printed.seek(0)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{printed.read()[-3000:]}")
        return printed.read(), peak / 1e6


def upper_bound(scratch: Path, files: Sequence[Path]) -> float:
    """Images per second of reading, decoding and network on all cores."""
    mlflow.set_tracking_uri(f"sqlite:///{scratch}/mlflow.db")
    with flavor.opened_bundle("models:/CatDogClassifier/1") as stored:
        engine, spec = OnnxEngine(stored.path / bundle.GRAPH), stored.description.preprocess
        with ThreadPoolExecutor(available_cores()) as pool:
            started = time.monotonic()
            list(pool.map(lambda file: engine.run(preprocess(file.read_bytes(), spec)[None]), files))
            return len(files) / (time.monotonic() - started)


def table(rows: Sequence[Row], bound: float) -> str:
    """The rows in Markdown."""
    head = ["", "engine", "images", "seconds", "ms per image", "stage, images/s", "of the bound", "memory MB", "disk MB"]
    cells = [head]
    for row in rows:
        rates = [f"{1000 * row.seconds / row.images:.2f}", f"{row.images_per_s:.0f}", f"{row.images_per_s / bound:.2f}"]
        sizes = [f"{row.memory_mb:.0f}", f"{row.disk_mb:.0f}"]
        cells.append([row.task, row.engine, f"{row.images:,}", f"{row.seconds:.0f}", *rates, *sizes])
    return markdown_table(cells)


def _first(everything: Path, count: int, folder: Path) -> Path:
    """A folder with links to the first images."""
    for file in sorted(everything.glob("*/*.jpg"), key=lambda file: file.name)[:count]:
        (folder / file.parent.name).mkdir(parents=True, exist_ok=True)
        (folder / file.parent.name / file.name).hardlink_to(file)
    return folder


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--photos", type=Path, default=os.environ.get("CATDOG_PHOTOS"), help="class folders; default: generated"
    )
    parser.add_argument("--weights", default=os.environ.get("CATDOG_WEIGHTS", "imagenet"), help="as of `catdog train`")
    parser.add_argument(
        "--counts", type=int, nargs="+", default=[2_000, 20_000, 200_000], help="200,000 take 8 GB and hours"
    )
    parser.add_argument("--engines", nargs="+", default=["local", "local-cluster[1,1,2048]", "local-cluster[2,1,2048]"])
    parser.add_argument("--folder", type=Path, default=Path("benchmark-scale"), help="where images are made, and kept")
    parser.add_argument("--output", type=Path, default=Path("benchmark-scale.json"))
    arguments = parser.parse_args()
    arguments.photos = Path(arguments.photos) if arguments.photos else None
    arguments.folder = arguments.folder.absolute()
    arguments.folder.mkdir(exist_ok=True)
    return arguments


if __name__ == "__main__":
    main()
