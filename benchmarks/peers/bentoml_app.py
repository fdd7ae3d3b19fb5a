"""BentoML, as its docs say; BENCH_WAY is plain or onnx_way, BENCH_PATH the weights or the graph."""

import importlib
import os

import bentoml
from PIL.Image import Image


@bentoml.service(workers=int(os.environ.get("BENCH_WORKERS", "2")))
class Classifier:
    def __init__(self) -> None:
        self.way = importlib.import_module(os.environ["BENCH_WAY"])
        self.model = self.way.load(os.environ["BENCH_PATH"])

    @bentoml.api
    def classify(self, image: Image) -> dict:
        return self.way.predict(self.model, image)
