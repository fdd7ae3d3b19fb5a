"""Drift: what has changed is noticed and named, chance is not, and each source of predictions gives the same sample."""

from __future__ import annotations

import json
import math
import shutil
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import mlflow
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from matplotlib.text import Text
from mlflow_catdog.runtime.metrics import Metrics
from prometheus_client.parser import text_string_to_metric_families
from scipy import stats

from catdog_pyfunc import flavor
from catdog_pyfunc.errors import InvalidData, InvalidSetting
from catdog_pyfunc.pipeline import Comparison, DriftConfig, ScoringConfig, check_drift, score
from catdog_pyfunc.pipeline.cli.main import catdog
from catdog_pyfunc.pipeline.evaluation.reference import FILE_NAME, read_reference, write_reference
from catdog_pyfunc.pipeline.monitoring import prometheus
from catdog_pyfunc.pipeline.monitoring.comparison import compare
from catdog_pyfunc.pipeline.monitoring.config import QUANTITIES
from catdog_pyfunc.pipeline.monitoring.plot import plot
from catdog_pyfunc.pipeline.monitoring.sample import DISTRIBUTIONS, Sample, from_rows


def drawn_rows(rng: np.random.Generator, n: int, cats: float = 0.5, outside: float = 0.04) -> pd.DataFrame:
    """Predictions as a model makes them."""
    return pd.DataFrame(
        {
            "label": np.where(rng.random(n) < cats, "cat", "dog"),
            "confidence": 1 - rng.beta(0.3, 6, n) / 2,
            "in_domain": rng.random(n) >= outside,
            "domain_score": 1 - rng.beta(6, 12, n),
            "image_bytes": rng.lognormal(11, 0.4, n),
            "error": None,
        }
    )


RNG = np.random.default_rng(0)
TEST = from_rows(drawn_rows(RNG, 1000))
NOW = drawn_rows(RNG, 300)
NOW.loc[0, ["domain_score", "confidence"]] = 0.5, 0.3  # bounds of buckets


def compared(observed: Sample, reference: Sample = TEST, **limits: Any) -> dict[str, Comparison]:
    return {each.quantity: each for each in compare(reference, observed, **{"alpha": 0.01, "min_effect": 0.02, **limits})}


def drifted(observed: Sample, **limits: Any) -> list[str]:
    return [name for name, each in compared(observed, **limits).items() if each.drifted]


# Comparing


def test_predictions_like_those_on_the_test_split_are_no_drift():
    assert drifted(from_rows(NOW)) == []
    assert list(compared(from_rows(NOW))) == list(QUANTITIES)


@pytest.mark.parametrize(
    ("quantity", "changed"),
    [
        ("in_domain", NOW.assign(in_domain=RNG.random(300) >= 0.2)),
        ("domain_score", NOW.assign(domain_score=NOW["domain_score"] - 0.05)),
        ("label", NOW.assign(label=np.where(RNG.random(300) < 0.8, "cat", "dog"))),
        ("confidence", NOW.assign(confidence=NOW["confidence"] - 0.03)),
        ("image_bytes", NOW.assign(image_bytes=NOW["image_bytes"] * 2)),
        ("error", pd.concat([NOW, pd.DataFrame([{"error": "is corrupt"}] * 15)])),
    ],
)
def test_what_has_drifted_is_named(quantity: str, changed: pd.DataFrame):
    assert drifted(from_rows(changed)) == [quantity]
    assert drifted(from_rows(changed), ignored={quantity}) == []
    assert drifted(from_rows(changed), min_effect=0.9) == []


def test_fewer_errors_and_fewer_strange_images_are_no_drift():
    worse = from_rows(pd.concat([drawn_rows(RNG, 1000, outside=0.3), pd.DataFrame([{"error": "is corrupt"}] * 100)]))
    assert [each.drifted for each in compare(worse, from_rows(NOW), alpha=0.01, min_effect=0.0)][0::4] == [False, False]


def test_the_tests_are_scipys_and_corrected_by_holms_method():
    observed = from_rows(NOW.assign(image_bytes=NOW["image_bytes"] * 1.05))
    found = compared(observed, ignored={"error"})
    ks = stats.ks_2samp(TEST.values["domain_score"], observed.values["domain_score"], method="asymp")
    assert (found["domain_score"].p, found["domain_score"].effect) == pytest.approx((ks.pvalue, ks.statistic))
    below = [np.mean(sample.values["domain_score"] <= ks.statistic_location) for sample in (TEST, observed)]
    words = [f"{fraction:.1%} up to {ks.statistic_location:.4g}" for fraction in below]
    assert [found["domain_score"].reference, found["domain_score"].observed] == words
    labels = [[sample.labels["cat"], sample.labels["dog"]] for sample in (TEST, observed)]
    assert found["label"].p == pytest.approx(stats.chi2_contingency(labels).pvalue)
    assert found["label"].effect == pytest.approx(abs(labels[0][0] / 1000 - labels[1][0] / 300))
    ranked = sorted((each for each in found.values() if not each.ignored), key=lambda each: each.p)
    largest = 0.0
    for rank, each in enumerate(ranked):
        largest = max(largest, min(1.0, (5 - rank) * each.p))
        assert each.adjusted_p == pytest.approx(largest)
    assert found["error"].adjusted_p == found["error"].p


def test_chance_alone_is_rarely_called_drift():
    rng = np.random.default_rng(1)
    alarms = sum(
        bool(drifted(from_rows(drawn_rows(rng, 200)), reference=from_rows(drawn_rows(rng, 500)), alpha=0.05))
        for _ in range(100)
    )
    assert alarms <= 10  # binomial: more than that in 1 % of cases, were it 5 %


def test_many_rare_labels_are_counted_together():
    rng = np.random.default_rng(2)

    def sample(n: int) -> Sample:
        frequent = drawn_rows(rng, n)
        rare = rng.random(n) < 0.2
        return from_rows(
            frequent.assign(label=frequent["label"].where(~rare, [f"breed {k}" for k in rng.integers(0, 400, n)]))
        )

    reference = sample(1000)
    assert np.mean([compared(sample(100), reference)["label"].p < 0.05 for _ in range(50)]) <= 0.14
    gone = sample(100)
    gone = replace(gone, labels={label: count for label, count in gone.labels.items() if label in ("cat", "dog")})
    assert compared(gone, reference)["label"].p < 1e-4


@pytest.mark.parametrize("reference", [TEST, from_rows(pd.DataFrame([{"error": "is corrupt"}] * 5, columns=list(NOW)))])
def test_nothing_to_compare_is_no_drift(reference: Sample):
    unreadable = from_rows(pd.DataFrame([{"error": "is corrupt"}] * 5, columns=list(NOW)))
    found = compared(unreadable, reference)
    assert {name for name, each in found.items() if each.p == 1} >= {"in_domain", "label", *DISTRIBUTIONS}
    assert found["error"].drifted == (reference is TEST)


# Buckets


def counted(rows: pd.DataFrame) -> dict[str, Any]:
    """What `/metrics` of a server has after these predictions: (metric, labels) → value."""
    metrics = Metrics("CatDogClassifier", "7", ["cat", "dog"])
    metrics.count(rows.to_dict("records"), [bytes(int(size)) for size in rows["image_bytes"]])
    return {
        (sample.name, tuple(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
        if sample.labels.get("model_version") == "7"
    }


class FakePrometheus(BaseHTTPRequestHandler):
    """Answers queries of the one form that is asked, as if each series had increased by its value."""

    series: Mapping[Any, float] = {}
    asked: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)["query"][0]
        self.asked.append(query)
        by, _, rest = query.removeprefix("sum by (").partition(") (increase(")
        name = rest.partition("{")[0]
        total: dict[str, float] = {}
        for (metric, labels), value in self.series.items():
            if metric == name:
                key = dict(labels).get(by, "")
                total[key] = total.get(key, 0) + value * 1.0004  # extrapolated
        result = [{"metric": {by: key} if by else {}, "value": [0, str(value)]} for key, value in total.items()]
        status, answer = (200, {"data": {"result": result}}) if "[24h]" in query else (400, {"status": "error"})
        body = json.dumps(answer).encode() if self.path.startswith("/api/v1/query?") else b"<html>"
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), FakePrometheus)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_what_the_server_counts_is_compared_as_rows_are(url: str, monkeypatch: pytest.MonkeyPatch):
    strange = drawn_rows(RNG, 60, outside=0.9).assign(domain_score=lambda rows: rows["domain_score"] - 0.3)
    for rows, expected in ((NOW, []), (pd.concat([NOW, strange]), ["in_domain", "domain_score"])):
        monkeypatch.setattr(FakePrometheus, "series", counted(rows))
        sample, exact = prometheus.read(url, "CatDogClassifier", "7", "24h"), from_rows(rows)
        assert (sample.labels, sample.out_of_domain, sample.errors) == (exact.labels, exact.out_of_domain, 0)
        for name in ("domain_score", "confidence"):
            binned = exact.in_buckets_of(sample).values[name]
            assert sorted(sample.values[name]) == pytest.approx(sorted(binned))
        assert drifted(sample) == expected
        found, with_rows = compared(sample), compared(exact)
        for name in DISTRIBUTIONS:
            assert with_rows[name].effect - 0.05 < found[name].effect <= with_rows[name].effect + 1e-9


def test_names_are_quoted_in_queries(url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(FakePrometheus, "asked", asked := [])
    prometheus.read(f"{url}/", 'my "pets"\\', "7", "24h")
    assert all('{model_name="my \\"pets\\"\\\\", model_version="7"}[24h]' in query for query in asked)
    assert len(asked) == 6


def test_a_busy_server_takes_no_more_memory(url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(FakePrometheus, "series", {key: value * 1e6 for key, value in counted(NOW).items()})
    sample = prometheus.read(url, "CatDogClassifier", "7", "24h")
    assert sample.readable == pytest.approx(3e8, rel=0.01)
    assert len(sample.values["domain_score"]) == pytest.approx(1e6, rel=0.01)
    assert drifted(sample, min_effect=0.1) == []


@pytest.mark.parametrize(
    ("path", "since", "message"),
    [
        ("{}/nowhere", "24h", r"source http.*nowhere does not answer as Prometheus does"),
        ("{}", "25h", r'refused sum by .*\[25h\].* \(HTTP 400\): {"status": "error"}'),
        ("http://127.0.0.1:9", "24h", "does not answer as Prometheus does .*: give its URL"),
    ],
)
def test_a_prometheus_that_cannot_be_asked_is_named(url: str, path: str, since: str, message: str):
    with pytest.raises(InvalidData, match=message):
        prometheus.read(path.format(url), "CatDogClassifier", "7", since)


# Plots


def test_the_plot_shows_every_quantity_and_what_has_drifted():
    observed = from_rows(NOW.assign(domain_score=NOW["domain_score"] - 0.1))
    comparisons = compare(TEST, observed, alpha=0.01, min_effect=0.02, ignored={"label"})
    figure = plot(comparisons, TEST, observed)
    titles = [axes.get_title().splitlines()[0] for axes in figure.axes]
    verdicts = dict.fromkeys(QUANTITIES, "no drift") | {"domain_score": "drifted", "label": "ignored"}
    assert titles == [f"{name}: {verdict}" for name, verdict in verdicts.items()]
    texts = [text.get_text() for text in figure.findobj(Text)]
    assert {"test split (1000 images)", "now (300 images)"} <= set(texts)
    figure.draw_without_rendering()


@pytest.mark.parametrize("labels", [1, 40])
def test_a_plot_can_be_drawn_of_whatever_there_is(labels: int):
    many = from_rows(NOW.assign(label=[f"a breed with a long name {k % labels}" for k in range(300)]))
    nothing = from_rows(pd.DataFrame([{"error": "is corrupt"}], columns=list(NOW)))
    coarse = Sample(
        {}, 0, 3, {name: np.array([]) for name in DISTRIBUTIONS}, {name: np.array([math.inf]) for name in DISTRIBUTIONS}
    )
    for reference, observed in ((TEST, many), (TEST, nothing), (nothing, nothing), (TEST, coarse)):
        plot(compare(reference, observed, alpha=0.01, min_effect=0.02), reference, observed).draw_without_rendering()


# The command, with a registered model


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, images: list[bytes]) -> Iterator[mlflow.MlflowClient]:
    """Versions of one model: 1 was tested on the drawn images, 2 brought no predictions, 3 brought another model's."""
    folder = tmp_path_factory.mktemp("store")
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    client = mlflow.MlflowClient()
    run = client.create_run(client.create_experiment("catdog", artifact_location=(folder / "artifacts").as_uri()))
    client.create_registered_model("CatDogClassifier")
    classifier = flavor.load_model(str(tiny_model))
    for version, digest in (("1", classifier.digest), ("2", None), ("3", "0123")):
        shutil.copytree(tiny_model, folder / version)
        if digest:
            write_reference(folder / version, classifier.predict(images), [len(image) for image in images], digest)
        client.create_model_version("CatDogClassifier", str(folder / version), run.info.run_id)
    yield client
    mlflow.set_tracking_uri(None)


def command(*words: str) -> Result:
    return CliRunner().invoke(catdog, ["drift", *words])


def newest(client: mlflow.MlflowClient) -> Any:
    return client.search_runs([client.get_experiment_by_name("catdog").experiment_id])[0]


def test_images_like_the_test_splits_exit_with_0_and_a_run(store: mlflow.MlflowClient, drawn: Path, tmp_path: Path):
    done = command("--version", "1", "--source", str(drawn / "val"))
    assert done.exit_code == 0, done.output
    run = newest(store)
    assert done.stdout.splitlines()[-1] == f"no drift (24 images; run {run.info.run_id})"
    assert "scoring images: 24/24" in done.stderr
    assert (run.info.status, run.info.run_name, run.data.tags["drift.verdict"]) == ("FINISHED", "drift v1", "none")
    assert run.data.tags["mlflow.parentRunId"] == store.get_model_version("CatDogClassifier", "1").run_id
    assert run.data.params["since"] == "24h"
    assert (run.data.metrics["drift/images"], run.data.metrics["drift/label_effect"]) == (24, 0)
    table = pd.read_csv(store.download_artifacts(run.info.run_id, "tables/drift.csv", str(tmp_path)))
    assert list(table["quantity"]) == list(QUANTITIES)
    assert [file.path for file in store.list_artifacts(run.info.run_id, "plots")] == ["plots/drift.png"]


def test_drift_exits_with_3_and_is_named(store: mlflow.MlflowClient, drawn: Path, tmp_path: Path):
    for number in range(24):
        (tmp_path / f"{number}.jpg").write_bytes(b"no image")
    done = command("--version", "1", "--source", str(tmp_path))
    assert (done.exit_code, done.stdout.splitlines()[-1].partition(" (")[0]) == (3, "drift: error"), done.output
    assert newest(store).data.tags["drift.verdict"] == "error"
    assert newest(store).info.status == "FINISHED"
    assert command("--version", "1", "--source", str(tmp_path), "--ignore", "error, label").exit_code == 0


def test_an_output_of_score_is_compared_unless_another_model_made_it(
    store: mlflow.MlflowClient, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    score(ScoringConfig(str(drawn / "val"), str(tmp_path / "scored"), "models:/CatDogClassifier/1"))
    monkeypatch.setattr(flavor, "opened_bundle", None)  # nothing is scored again
    report = check_drift(DriftConfig("1", str(tmp_path / "scored")))
    assert (report.drifted, report.images) == ((), 24)
    done = command("--version", "3", "--source", str(tmp_path / "scored"))
    assert done.exit_code == 1
    assert "has the predictions of model" in done.output
    (tmp_path / "scored" / "_SUCCESS").unlink()
    with pytest.raises(InvalidData, match="scored is not complete: run the command that began it again"):
        check_drift(DriftConfig("1", str(tmp_path / "scored")))


@pytest.mark.parametrize(
    ("version", "source", "message"),
    [
        ("1", "{url}", "has no images of models:/CatDogClassifier/1: give another source, or a longer since"),
        ("1", "nowhere", "nowhere does not exist"),
        ("2", "{url}", f"models:/CatDogClassifier/2 has no {FILE_NAME}"),
        ("9", "{url}", "'CatDogClassifier' has no version '9'"),
    ],
)
def test_what_cannot_be_told_exits_with_1(
    version: str, source: str, message: str, store: mlflow.MlflowClient, url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(FakePrometheus, "series", {})
    done = command("--version", version, "--source", source.format(url=url))
    assert done.exit_code == 1
    assert message in done.output
    assert newest(store).info.status == "FAILED"


def test_the_reference_tells_nothing_of_which_images_they_were(store: mlflow.MlflowClient):
    stored = read_reference("models:/CatDogClassifier/1")
    assert set(stored.column_names) == {"label", "confidence", "in_domain", "domain_score", "image_bytes", "error"}
    assert set(stored.schema.metadata) == {b"catdog.model_digest"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"since": "1 day"}, "since is '1 day'; give a duration such as 30m, 24h or 7d"),
        ({"source": "http://me:secret@host"}, r"^source is a URL with a password, .*: write it into ~/\.netrc$"),
        ({"alpha": 0.0}, "alpha is 0; give a number between 0 and 1"),
        ({"min_effect": 1.0}, "min_effect is 1; give 0 or more, and less than 1"),
        ({"ignore": "labels"}, "ignore is 'labels'; give some, but not all, of in_domain, domain_score, label, "),
        ({"ignore": ",".join(QUANTITIES)}, "; give some, but not all, of"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(settings: dict[str, Any], message: str):
    with pytest.raises(InvalidSetting, match=message):
        DriftConfig("1", **{"source": "photos", **settings})
    assert DriftConfig("1", "photos", since="1d12h", ignore=" label ,error").ignored == {"label", "error"}
