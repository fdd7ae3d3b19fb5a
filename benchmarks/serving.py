"""Serving speed: this project's model beside the alternatives, in one run, on loopback.

    python benchmarks/serving.py --model models:/CatDogClassifier@production --images path/to/photos

Every server has the same network and gets the same images. "upper bound" is decoding and network in this process, on all
cores, without a server; "mlflow overhead" is MLflow's server around a model that does nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import load
import models
import numpy as np
import servers
from images import draw_images, make_images
from mlflow_catdog.deployments import build
from report import Row, machine, ratios, table
from servers import PEERS_PYTHON, Server

from catdog_pyfunc import bundle, flavor, pyfunc_model
from catdog_pyfunc.cpu import available_cores
from catdog_pyfunc.engine import OnnxEngine
from catdog_pyfunc.preprocessing import preprocess


def main() -> None:
    """Measure, print, write."""
    arguments = _arguments()
    load.check_wrk()
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    warnings.simplefilter("ignore")  # about type hints and input examples
    with tempfile.TemporaryDirectory(prefix="catdog-bench-") as name:
        scratch = Path(name)
        images = make_images(arguments.images or draw_images(scratch / "drawn"))
        model = models.open_or_create(arguments.model, images["500x375"][0], scratch)
        stored = model / "artifacts" / pyfunc_model.BUNDLE_ARTIFACT
        labels = _labels(model, images)
        rows = measure_upper_bound(stored, images, arguments.seconds)
        for server in _plan(model, scratch, arguments.only):
            rows += measure(server, images, labels, arguments, scratch)
    report = {
        "machine": machine(),
        "images": _sizes(images),
        "seconds": arguments.seconds,
        "rows": [asdict(row) for row in rows],
    }
    report["ratios"] = ratios(rows)
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    print(f"\n{machine()}; images {_sizes(images)}\n\n{table(rows)}")
    print(f"{json.dumps(report['ratios'], indent=2)}\nwritten: {arguments.output}")


def measure_upper_bound(stored: Path, images: dict[str, list[bytes]], seconds: float) -> list[Row]:
    """Decoding and network in this process: one thread for one client, one per core for eight."""
    description = bundle.read(stored).description
    engine = OnnxEngine(stored / bundle.GRAPH, quantized=description.quantized)

    def latency_ms(image: bytes) -> float:
        started = time.perf_counter()
        engine.run(preprocess(image, description.preprocess)[None])
        return 1000 * (time.perf_counter() - started)

    rows = []
    for size, files in images.items():
        for clients, threads in ((1, 1), (8, available_cores())):
            times, elapsed = _run(latency_ms, files, threads, seconds)
            p50, p99 = np.percentile(times, [50, 99])
            rows.append(Row("upper bound", 1, size, clients, len(times) / elapsed, p50, p99, 0, "-"))
    return rows


def _run(
    latency_ms: Callable[[bytes], float], files: Sequence[bytes], threads: int, seconds: float
) -> tuple[list[float], float]:
    def until(deadline: float) -> list[float]:
        times: list[float] = []
        while time.perf_counter() < deadline:
            times.append(latency_ms(files[len(times) % len(files)]))
        return times

    with ThreadPoolExecutor(threads) as pool:
        for duration in (1.0, seconds):  # the first is the warm-up
            started = time.perf_counter()
            parts = list(pool.map(until, [started + duration] * threads))
            elapsed = time.perf_counter() - started
    return [value for part in parts for value in part], elapsed


def measure(
    server: Server, images: dict[str, list[bytes]], labels: dict[bytes, str], arguments: argparse.Namespace, scratch: Path
) -> list[Row]:
    """Measure one server: start-up, memory, and each image size with one and eight clients."""
    rows = []
    first = images["500x375"][0]
    with servers.running(server, first, scratch / "server.log") as running:
        for size, files in images.items():
            found = [servers.predict(running.url, server.request_format, image) for image in files]
            same = f"{sum(label == labels[image] for label, image in zip(found, files, strict=True))}/{len(files)}"
            bodies = [server.request_format.body(image) for image in files]
            for clients in (1, 8):
                seen = load.apply_load(
                    running.url,
                    server.request_format.path,
                    server.request_format.content_type,
                    bodies,
                    clients=clients,
                    seconds=arguments.seconds,
                    scratch=scratch / "bodies",
                )
                speed = (seen.images_per_s, seen.p50_ms, seen.p99_ms, seen.errors)
                row = Row(server.name, server.workers, size, clients, *speed, same, running.start_s, running.memory_mb())
                rows.append(row)
                print(
                    f"{server.name}, {server.workers} workers, {size}, {clients} clients: {seen.images_per_s:.1f}/s",
                    flush=True,
                )
    return rows


def _plan(model: Path, scratch: Path, only: str | None) -> list[Server]:
    stored = model / "artifacts" / pyfunc_model.BUNDLE_ARTIFACT
    graph, weights = stored / bundle.GRAPH, stored / bundle.WEIGHTS
    empty, baseline = models.peers(model, weights, scratch)
    served = models.environment(model)
    plan = []
    build.write_context(model, scratch / "context")
    for workers in (1, 2):
        plan.append(servers.catdog_server("catdog server", served, scratch / "context", workers))
        plan.append(servers.mlflow_serve("mlflow overhead", served, empty, workers))
        plan.append(servers.mlflow_serve("catdog", served, model, workers))
        plan.append(servers.mlflow_serve("torch pyfunc", PEERS_PYTHON, baseline, workers))
    plan.append(servers.mlflow_serve("mlflow overhead, parquet", served, empty, 2, servers.PARQUET))
    plan.append(servers.mlflow_serve("catdog, parquet", served, model, 2, servers.PARQUET))
    for name, module, path in (("eager torch", "torch_baseline", weights), ("ONNX", "onnx_baseline", graph)):
        plan.append(servers.litserve(f"LitServe, {name}", PEERS_PYTHON, module, path, 2))
        plan.append(servers.bentoml(f"BentoML, {name}", PEERS_PYTHON, module, path, 2, scratch / "bentoml"))
    plan.append(servers.ray_serve("Ray Serve, ONNX", PEERS_PYTHON, graph, 2))
    named = {f"{server.name} {server.workers}": server for server in plan}
    selected = only.split(";") if only else list(named)
    if unknown := set(selected) - set(named):
        known = "; ".join(named)
        raise SystemExit(f"--only has unknown {', '.join(map(repr, sorted(unknown)))}: it may contain {known}")
    chosen = [named[name] for name in selected]
    if any(str(PEERS_PYTHON) in server.command for server in chosen) and not PEERS_PYTHON.exists():
        raise SystemExit(f"{PEERS_PYTHON} does not exist: `make bench` creates it")
    return chosen


def _labels(model: Path, images: dict[str, list[bytes]]) -> dict[bytes, str]:
    classifier = flavor.load_model(str(model))
    files = [image for group in images.values() for image in group]
    return {image: str(prediction.label) for image, prediction in zip(files, classifier.predict(files), strict=True)}


def _sizes(images: dict[str, list[bytes]]) -> str:
    return ", ".join(
        f"{name}: {len(files)} files of {np.mean([len(f) for f in files]) / 1e3:,.0f} kB" for name, files in images.items()
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", help="a mobilenet_v2 for cats and dogs that this project saved; default: an untrained one, just as fast"
    )
    parser.add_argument(
        "--images",
        type=Path,
        default=os.environ.get("CATDOG_PHOTOS"),
        help="a folder with .jpg files; default: generated ones",
    )
    parser.add_argument("--seconds", type=float, default=8, help="duration of each measurement")
    parser.add_argument("--only", help="servers, such as 'catdog 2;mlflow overhead 2'; default: all")
    parser.add_argument("--output", type=Path, default=Path("benchmark-serving.json"))
    arguments = parser.parse_args()
    arguments.images = Path(arguments.images) if arguments.images else None
    return arguments


if __name__ == "__main__":
    main()
