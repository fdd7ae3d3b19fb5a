"""Ray Serve with the same ONNX file and raw bodies: ray_app.py <graph> <port> <replicas>."""

import io
import signal
import sys

import onnx_baseline
from PIL import Image
from ray import serve
from starlette.requests import Request


@serve.deployment(ray_actor_options={"num_cpus": 1}, max_ongoing_requests=8)
class Classifier:
    def __init__(self, graph: str) -> None:
        self.model = onnx_baseline.load(graph)

    async def __call__(self, request: Request) -> dict:
        return onnx_baseline.predict(self.model, Image.open(io.BytesIO(await request.body())))


if __name__ == "__main__":
    graph, port, replicas = sys.argv[1:]
    serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
    serve.run(Classifier.options(num_replicas=int(replicas)).bind(graph), route_prefix="/predict")
    signal.sigwait({signal.SIGTERM})
    serve.shutdown()
