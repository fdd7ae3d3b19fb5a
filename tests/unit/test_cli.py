"""The command line in process: its options are the dataclasses' fields, its errors are messages."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import click
import mlflow
import pytest
import yaml
from click.testing import CliRunner, Result

import catdog_pyfunc
from catdog_pyfunc.errors import InvalidSetting, PromotionLost
from catdog_pyfunc.pipeline import interrupted, tracking
from catdog_pyfunc.pipeline.auditing.config import AuditConfig
from catdog_pyfunc.pipeline.cli import options
from catdog_pyfunc.pipeline.cli.main import COMMANDS, catdog
from catdog_pyfunc.pipeline.evaluation.runs import EvaluationConfig
from catdog_pyfunc.pipeline.labelling.select import SelectionConfig
from catdog_pyfunc.pipeline.monitoring.config import DriftConfig
from catdog_pyfunc.pipeline.registry import reconcile, versions
from catdog_pyfunc.pipeline.registry.gate import Thresholds
from catdog_pyfunc.pipeline.registry.promotion import Promotion
from catdog_pyfunc.pipeline.training import finetuning
from catdog_pyfunc.pipeline.training.config import TrainingConfig
from catdog_pyfunc.pipeline.training.train import train

REPOSITORY = Path(__file__).parent.parent.parent
ENTRY_POINTS = yaml.safe_load((REPOSITORY / "MLproject").read_text())["entry_points"]


def catdog_command(name: str) -> click.Command:
    command = catdog.get_command(click.Context(catdog), name)
    assert command is not None
    return command


def run(*words: str, **environment: str) -> Result:
    return CliRunner().invoke(catdog, words, env=environment)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tracking store without models; making its tables takes seconds."""
    return tmp_path_factory.mktemp("store") / "mlflow.db"


@pytest.fixture
def store(database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[mlflow.MlflowClient]:
    monkeypatch.chdir(database.parent)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)
    mlflow.set_tracking_uri(f"sqlite:///{database}")
    yield mlflow.MlflowClient()
    mlflow.set_tracking_uri(None)


# Help


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_load_neither_torch_nor_mlflow(option: str):
    code = (
        "import sys; from catdog_pyfunc.pipeline.cli.main import catdog; "
        f"catdog(['{option}'], standalone_mode=False); print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert catdog_pyfunc.__version__ in printed or all(summary in printed for summary in COMMANDS.values())
    assert not {"torch", "mlflow", "matplotlib", "pandas"} & set(printed.split())


def test_predict_needs_nothing_of_the_train_extra():
    code = (
        "import sys; "
        "sys.modules |= dict.fromkeys(['torch', 'torchvision', 'tqdm', 'matplotlib', 'onnx', 'scipy', 'sklearn']); "
        "from catdog_pyfunc.pipeline.cli.main import catdog; catdog()"
    )
    image = str(Path(__file__))
    words = [sys.executable, "-c", code, "predict", "--model-uri", "no/such/model", image]
    predict = subprocess.run(words, capture_output=True, text=True)
    assert "no/such/model" in predict.stderr
    train = subprocess.run([sys.executable, "-c", code, "train"], capture_output=True, text=True)
    assert train.stderr.splitlines()[-1] == "Error: tqdm is not installed: pip install 'catdog-pyfunc[train]'"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_summarised_as_it_describes_itself(name: str):
    command = catdog_command(name)
    assert command.get_short_help_str(limit=100).rstrip(".") == COMMANDS[name].rstrip(".")
    assert all(parameter.help for parameter in command.params if isinstance(parameter, click.Option))
    assert run(name, "--help").exit_code == 0


def test_an_unknown_command_is_named():
    done = run("deploy")
    assert done.exit_code == 2
    assert "No such command 'deploy'" in done.output


# Options from dataclasses


@dataclass(frozen=True)
class Example:
    """An example.

    Attributes:
        version: Required.
        min_accuracy: A fraction that is described
            on two lines.
        force: Switches it on.
        split: One of two.

    Later sections do not count:
        force: Not this.
    """

    version: str
    min_accuracy: float = 0.8
    force: bool = False
    split: str = "test"


def build_example(*words: str) -> Result:
    @click.command()
    @options.options_from(Example, split=("train", "test"))
    @click.option("--other", default="")
    def command(**values: object) -> None:
        click.echo(repr(options.build(Example, values)))

    return CliRunner().invoke(command, words)


def test_options_take_name_type_default_and_help_from_a_dataclass():
    assert build_example("--version", "3").output == f"{Example('3')!r}\n"
    given = build_example("--version", "3", "--min-accuracy", "0.9", "--force", "true", "--split", "train", "--other", "x")
    assert given.output == f"{Example('3', 0.9, True, 'train')!r}\n"
    assert build_example("--version", "3", "--force", "false").output == f"{Example('3')!r}\n"
    assert [(p.flag, p.default, p.help) for p in options.parameters(Example)] == [
        ("--version", None, "Required."),
        ("--min-accuracy", 0.8, "A fraction that is described on two lines."),
        ("--force", False, "Switches it on."),
        ("--split", "test", "One of two."),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Missing option '--version'"),
        (["--version", "3", "--min-accuracy", "high"], "'high' is not a valid float"),
        (["--version", "3", "--force", "perhaps"], "'perhaps' is not a valid boolean"),
        (["--version", "3", "--split", "tset"], "'tset' is not one of 'train', 'test'"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(words: list[str], message: str):
    done = build_example(*words)
    assert done.exit_code == 2
    assert message in done.output


@pytest.mark.parametrize(
    ("name", "configs", "more"),
    [
        ("train", [TrainingConfig], {"run_name"}),
        ("audit", [AuditConfig], set()),
        ("evaluate", [EvaluationConfig], set()),
        ("promote", [Promotion, Thresholds], set()),
        ("select", [SelectionConfig], set()),
        ("drift", [DriftConfig], set()),
    ],
)
def test_a_command_has_the_fields_of_its_dataclasses(name: str, configs: list[type], more: set[str]):
    wanted = {parameter.name: parameter for config in configs for parameter in options.parameters(config)}
    command = catdog_command(name)
    assert {option.name for option in command.params} == {*wanted, *more}
    for option in command.params:
        if parameter := wanted.get(str(option.name)):
            assert isinstance(option, click.Option)
            assert (option.help, option.required) == (parameter.help, parameter.default is None)
            assert parameter.default is None or option.default == parameter.default


# MLproject


def command_of(entry_point: str) -> click.Command:
    script = re.match(r"python -m scripts\.(\w+) ", ENTRY_POINTS[entry_point]["command"])
    assert script
    return catdog_command(script[1])


def test_mlproject_has_every_command():
    assert {command_of(entry_point).name for entry_point in ENTRY_POINTS} == set(COMMANDS)


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_mlproject_has_the_parameters_and_defaults_of_the_command(entry_point: str):
    command, given = command_of(entry_point), ENTRY_POINTS[entry_point]["parameters"]
    wanted = {str(parameter.name): parameter for parameter in command.params}
    wanted.pop("run_name", None)  # `mlflow run` has an option of that name
    if entry_point == "predict":
        wanted["image"] = wanted.pop("images")  # one image per run
    assert set(given) == set(wanted)
    for name, parameter in wanted.items():
        specified = given[name] if isinstance(given[name], dict) else {"type": given[name]}
        assert specified["type"] == "string"
        assert ("default" in specified) != parameter.required, name
        if not parameter.required:
            assert parameter.type_cast_value(click.Context(command), specified["default"]) == parameter.default, name


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_mlproject_passes_every_parameter_to_the_option_of_its_name(entry_point: str):
    words = ENTRY_POINTS[entry_point]["command"].split()[3:]
    if entry_point == "predict":
        assert words.pop(0) == "{image}"
    passed = dict(zip(words[::2], words[1::2], strict=True))
    names = set(ENTRY_POINTS[entry_point]["parameters"]) - {"image"}
    assert passed == {f"--{name.replace('_', '-')}": f"{{{name}}}" for name in names}


# Errors and interruption


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train --image-size 7", "image_size is 7"),
        ("train --data no/such/folder", "no/such/folder does not exist"),
        ("audit --data no/such/folder", "no/such/folder does not exist"),
        ("evaluate --model-uri models:/Nobody@production", "models:/Nobody@production"),
        (
            "register --run-id 0123456789abcdef0123456789abcdef",
            "run '0123456789abcdef0123456789abcdef' is not in sqlite:///",
        ),
        ("promote --version 1 --name Nobody", "there is no model 'Nobody'"),
        ("promote --version 1 --alias latest", "alias 'latest' is not allowed"),
        ("promote --version 1 --force true", "give a reason"),
        ("promote --version 1 --min-accuracy 80", "min_accuracy is 80"),
        ("select --data no/such/folder", "no/such/folder is not a folder"),
        ("train --relabel no.csv", "the corrections no.csv do not exist"),
        ("drift --version 1 --source . --name Nobody", "there is no model 'Nobody'"),
        ("drift --version 1 --source . --since yesterday", "since is 'yesterday'; give a duration such as 30m, 24h or 7d"),
        ("rollback --name Nobody", "'Nobody'"),
        ("history --name Nobody", "'Nobody'"),
        ("predict --model-uri models:/Nobody@production {file}", "models:/Nobody@production"),
    ],
)
def test_an_error_is_a_message_and_leaves_no_run_running(words: str, message: str, store: mlflow.MlflowClient):
    done = run(*words.format(file=__file__).split())
    assert done.exit_code == 1, done.output
    assert done.output.splitlines()[-1].startswith("Error: ")
    assert message in done.output
    assert "Traceback" not in done.output
    experiments = [experiment.experiment_id for experiment in store.search_experiments()]
    assert not store.search_runs(experiments, "attributes.status = 'RUNNING'")


def test_a_missing_image_is_named():
    done = run("predict", "no-such.jpg")
    assert done.exit_code == 2
    assert "'no-such.jpg' does not exist" in done.output


def test_an_unwritable_tracking_store_is_named():
    mlflow.set_tracking_uri("sqlite:////proc/no/mlflow.db")
    try:
        done = run("train")
    finally:
        mlflow.set_tracking_uri(None)
    assert done.exit_code == 1
    assert "the tracking store sqlite:////proc/no/mlflow.db" in done.output


def raising(error: BaseException):  # type: ignore[no-untyped-def]
    def history(name: str) -> None:
        raise error

    return history


def test_an_expected_error_is_its_message_and_an_unexpected_one_is_raised(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reconcile, "history", raising(PromotionLost("somebody was faster")))
    done = run("history")
    assert (done.exit_code, done.output) == (1, "Error: somebody was faster\n")
    monkeypatch.setattr(reconcile, "history", raising(ZeroDivisionError("a bug")))
    assert isinstance(run("history").exception, ZeroDivisionError)


def test_a_package_that_is_not_installed_is_answered_by_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reconcile, "history", raising(ModuleNotFoundError("No module named 'tqdm'", name="tqdm")))
    done = run("history")
    assert (done.exit_code, done.output) == (1, "Error: tqdm is not installed: pip install 'catdog-pyfunc[train]'\n")
    ours = ModuleNotFoundError("No module named 'catdog_pyfunc.lost'", name="catdog_pyfunc.lost")
    monkeypatch.setattr(reconcile, "history", raising(ours))
    assert run("history").exception is ours


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--finetune-epochs", "0"],
            "finetune_epochs is 0, and fine-tuning is all that the 3 processes of torchrun could share",
        ),
        (["--finetune-epochs", "1"], "batch_size is 16 for 3 processes together; give a multiple of 3, and at least 6"),
        (["--finetune-epochs", "1", "--batch-size", "3"], "batch_size is 3 for 3 processes together"),
    ],
)
def test_processes_of_torchrun_that_cannot_share_a_training_leave_no_run(options: list[str], message: str):
    done = run("train", "--data", "photos", *options, TORCHELASTIC_RUN_ID="none", RANK="0", WORLD_SIZE="3")
    assert done.exit_code == 1
    assert message in done.output


def test_only_the_first_process_of_torchrun_trains(monkeypatch: pytest.MonkeyPatch):
    assisted: list[bool] = []
    monkeypatch.setattr(finetuning, "assist", lambda: assisted.append(True))
    second = {"TORCHELASTIC_RUN_ID": "none", "RANK": "1", "WORLD_SIZE": "2"}
    done = run("train", "--data", "photos", **second)
    assert (done.exit_code, done.output, assisted) == (0, "", [True])
    for name, value in second.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidSetting, match="train was called in rank 1 of torchrun"):
        train(TrainingConfig(data="photos"))


def test_an_interruption_is_130_and_no_traceback(monkeypatch: pytest.MonkeyPatch):
    killed: list[str] = []
    monkeypatch.setattr(interrupted, "mark_killed", killed.append)
    monkeypatch.setattr(reconcile, "history", raising(KeyboardInterrupt()))
    done = run("history")
    assert (done.exit_code, done.output, killed) == (130, "interrupted\n", [])


def test_an_interruption_before_the_run_began_ends_the_run_of_mlflow_run(monkeypatch: pytest.MonkeyPatch):
    killed: list[str] = []
    monkeypatch.setattr(interrupted, "mark_killed", killed.append)
    monkeypatch.setattr(catdog, "get_command", lambda ctx, name: raising(KeyboardInterrupt())(name))
    done = run("train", MLFLOW_RUN_ID="0123")
    assert (done.exit_code, done.output, killed) == (130, "interrupted\n", ["0123"])


def test_an_interruption_in_the_middle_of_importing_mlflow_is_130_and_no_traceback(tmp_path: Path):
    (tmp_path / "mlflow.py").write_text("raise KeyboardInterrupt\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}", "MLFLOW_RUN_ID": "0123"}
    done = subprocess.run(
        [sys.executable, "-m", "scripts.train"], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


# What commands print


@pytest.mark.parametrize(("registered_model", "version"), [("Pets", "4"), ("none", None)])
def test_train_says_what_it_made(
    registered_model: str, version: str | None, store: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch
):
    configs: list[TrainingConfig] = []

    def train(config: TrainingConfig) -> SimpleNamespace:
        configs.append(config)
        evaluation = SimpleNamespace(accuracy="0.9860 (0.9790–0.9910)")
        return SimpleNamespace(evaluation=evaluation, model_uri="runs:/1/model", version=version)

    monkeypatch.setitem(sys.modules, "catdog_pyfunc.pipeline.training.train", SimpleNamespace(train=train))
    done = run("train", "--seed", "3", "--registered-model", registered_model)
    assert configs == [TrainingConfig(seed=3, registered_model=registered_model)], done.output
    printed = ["test accuracy 0.9860 (0.9790–0.9910)", "model runs:/1/model"]
    printed += ["registered as models:/Pets/4; next: catdog promote --version 4 --name Pets"] if version else []
    assert done.output.splitlines()[-len(printed) :] == printed


def test_the_next_command_is_one_that_the_user_has(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tracking, "run_of_project", contextlib.nullcontext)
    monkeypatch.setattr(versions, "register", lambda run_id, name: SimpleNamespace(version=7))
    assert run("register", "--run-id", "1").output.endswith("; next: catdog promote --version 7\n")
    by_mlflow = run("register", "--run-id", "1", "--name", "my pets", MLFLOW_RUN_ID="0123")
    assert by_mlflow.output.endswith("; next: mlflow run . -e promote -P version=7 -P 'name=my pets'\n")
