"""Fine-tuning in two processes of `torchrun`: beside one process, on two machines, and with a process killed."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from mlflow.entities import Run

from catdog_pyfunc.pipeline.data.dataset import read_folder
from catdog_pyfunc.pipeline.processes import free_port
from catdog_pyfunc.pipeline.training.augmentation import LabelledImages
from tests.integration.finetune_worker import CONFIG, SPEC, WITH_BATCH_NORM, WITHOUT_BATCH_NORM, build_network
from tests.project import MODEL, REPOSITORY, Project, make_project
from tests.waiting import await_condition

pytestmark = pytest.mark.slow
EPOCHS = 6
TRAIN = ["catdog", "train", "--weights", "none", "--backbone", "shufflenet_v2_x0_5", "--image-size", "64"]
TRAIN += ["--finetune-epochs", str(EPOCHS), "--batch-size", "12"]
TWO_PROCESSES = ["torchrun", "--standalone", "--nproc-per-node", "2"]


def finetuned(project: Project, data: Path, *launcher: str) -> tuple[dict[str, dict[str, Any]], list[list[str]]]:
    """What `finetune_worker` got, by network, and the training images that each process read."""
    output = project.folder / launcher[0]
    output.mkdir()
    done = project.command(*launcher, "-m", "tests.integration.finetune_worker", str(data), str(output))
    assert done.returncode == 0, done.stderr
    return torch.load(output / "networks.pt"), [json.loads(file.read_text()) for file in sorted(output.glob("*.json"))]


def test_two_processes_learn_from_the_same_batches_as_one(drawn: Path, tmp_path: Path):
    project = make_project(tmp_path)
    one, (all_images,) = finetuned(project, drawn, "python")
    two, shards = finetuned(project, drawn, *TWO_PROCESSES)

    dataset = read_folder(drawn)
    digests, half = sorted(example.digest for example in dataset.splits["train"]), len(dataset.splits["train"]) // 2
    assert len(all_images) == len(digests) * CONFIG.epochs * len(one)
    for start in range(0, len(all_images) // 2, half):
        assert sorted(shards[0][start : start + half] + shards[1][start : start + half]) == digests

    weights, start = one[WITHOUT_BATCH_NORM]["weights"], build_network(WITHOUT_BATCH_NORM, 2).state_dict()
    assert not torch.allclose(weights["features.0.weight"], start["features.0.weight"], atol=1e-3)
    for name, value in weights.items():
        assert torch.allclose(value, two[WITHOUT_BATCH_NORM]["weights"][name], atol=1e-6), name
    assert two[WITHOUT_BATCH_NORM]["losses"] == pytest.approx(one[WITHOUT_BATCH_NORM]["losses"], abs=1e-6)

    network = build_network(WITH_BATCH_NORM, 2).eval()
    network.load_state_dict(two[WITH_BATCH_NORM]["weights"])
    val = LabelledImages(dataset.splits["val"], SPEC, augment=False)
    images, labels = torch.stack([val[index][0] for index in range(len(val))]), torch.tensor([label for _, label in val])
    normalised = (images / 255 - torch.tensor(SPEC.mean).view(3, 1, 1)) / torch.tensor(SPEC.std).view(3, 1, 1)
    with torch.inference_mode():
        loss = torch.nn.functional.cross_entropy(network(normalised), labels).item()
    assert min(two[WITH_BATCH_NORM]["losses"]) == pytest.approx(loss, abs=1e-5), "both processes must validate one network"


def start(command: list[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    with log.open("w") as stream:
        return subprocess.Popen(command, cwd=REPOSITORY, env=dict(environment), stdout=stream, stderr=stream)


def epochs(project: Project, run_id: str) -> dict[int, float]:
    """Epoch → loss on val, as logged; each only once."""
    history = project.client().get_metric_history(run_id, "finetune/val_loss")
    assert len({metric.step for metric in history}) == len(history)
    return {metric.step: metric.value for metric in history}


def trained_on_two_machines(project: Project, data: Path) -> None:
    """The second machine has an empty cache and no tracking server."""
    launcher = ["torchrun", "--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1"]
    launcher += ["--master-port", str(free_port()), "--no-python"]
    nowhere = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "XDG_CACHE_HOME": str(project.folder / "empty")}
    machines = [
        start([*launcher[:1], "--node-rank", str(rank), *launcher[1:], *TRAIN, "--data", str(data)], log, environment)
        for rank, log, environment in (
            (0, project.folder / "machine0.log", project.environment),
            (1, project.folder / "machine1.log", {**project.environment, **nowhere}),
        )
    ]
    try:
        assert [machine.wait(timeout=300) for machine in machines] == [0, 0], (project.folder / "machine0.log").read_text()
    finally:
        for machine in machines:
            machine.terminate()
            machine.wait(timeout=60)
    assert not (project.folder / "empty").exists()


def killed_in_training(project: Project, data: Path, rank: int, epoch: int) -> Run:
    """Start or resume the training, send SIGKILL to one process after an epoch, and wait for the end of the run."""
    log = project.folder / f"killed{rank}.log"
    command = [*TWO_PROCESSES, "--no-python", *TRAIN, "--data", str(data), "--resume", "true"]
    launcher = start(command, log, project.environment)
    try:
        await_condition(lambda: f"epoch {epoch}/{EPOCHS}: val" in log.read_text() or launcher.poll() is not None, 300)
        processes = {process.environ().get("RANK"): process for process in psutil.Process(launcher.pid).children()}
        processes[str(rank)].send_signal(signal.SIGKILL)
        assert launcher.wait(timeout=90) != 0
    finally:
        launcher.terminate()
        launcher.wait(timeout=60)
    await_condition(lambda: latest_run(project).info.status != "RUNNING")
    return latest_run(project)


def latest_run(project: Project) -> Run:
    return project.client().search_runs(["1"], max_results=1)[0]


def test_after_a_process_was_killed_the_training_ends_as_if_it_had_not_been(drawn: Path, tmp_path: Path):
    whole, cut = make_project(tmp_path / "whole"), make_project(tmp_path / "cut")
    trained_on_two_machines(whole, drawn)
    (complete,) = whole.client().search_runs(["1"])
    assert (complete.info.status, complete.data.params["system.processes"]) == ("FINISHED", "2")
    assert len(whole.client().search_model_versions(f"name='{MODEL}'")) == 1
    losses = epochs(whole, complete.info.run_id)
    assert list(losses) == list(range(1, EPOCHS + 1))

    second_lost = killed_in_training(cut, drawn, 1, 1)
    assert second_lost.info.status in ("FAILED", "KILLED")
    assert list((cut.folder / "cache" / "catdog-pyfunc").glob("finetune-*.pt"))
    first_lost = killed_in_training(cut, drawn, 0, 3)
    assert first_lost.info.status == "KILLED"
    assert not cut.client().search_registered_models()

    done = cut.command(*TWO_PROCESSES, "--no-python", *TRAIN, "--data", str(drawn), "--resume", "true")
    assert done.returncode == 0, done.stderr
    resumed = latest_run(cut)
    parts = [epochs(cut, run.info.run_id) for run in (second_lost, first_lost, resumed)]
    assert 1 in parts[0]
    assert 3 in parts[1]
    assert all(not set(one) & set(other) for one, other in itertools.combinations(parts, 2))
    assert parts[0] | parts[1] | parts[2] == pytest.approx(losses, abs=1e-5)
    assert resumed.data.metrics["test/log_loss"] == pytest.approx(complete.data.metrics["test/log_loss"], abs=1e-4)
    assert len(cut.client().search_model_versions(f"name='{MODEL}'")) == 1
    assert not list((cut.folder / "cache" / "catdog-pyfunc").glob("*finetune-*"))
