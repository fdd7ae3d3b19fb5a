"""BentoML, as its docs show it. BENCH_BASELINE is torch_baseline or onnx_baseline, BENCH_PATH the weights or the graph."""

import importlib
import os

import bentoml
from PIL.Image import Image


@bentoml.service(workers=int(os.environ.get("BENCH_WORKERS", "2")))
class Classifier:
    def __init__(self) -> None:
        self.baseline = importlib.import_module(os.environ["BENCH_BASELINE"])
        self.model = self.baseline.load(os.environ["BENCH_PATH"])

    @bentoml.api
    def classify(self, image: Image, /) -> dict:  # the whole body is the image
        return self.baseline.predict(self.model, image)
