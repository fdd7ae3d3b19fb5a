"""LitServe, as its docs show it: litserve_app.py torch_baseline|onnx_baseline <weights or graph> <port> <workers>."""

import base64
import importlib
import io
import sys

import litserve
from PIL import Image


class Api(litserve.LitAPI):
    def __init__(self, baseline: str, path: str) -> None:
        super().__init__()
        self.name, self.path = baseline, path

    def setup(self, device):
        self.baseline = importlib.import_module(self.name)
        self.model = self.baseline.load(self.path)

    def decode_request(self, request):
        return Image.open(io.BytesIO(base64.b64decode(request["image"])))

    def predict(self, image):
        return self.baseline.predict(self.model, image)

    def encode_response(self, output):
        return output


if __name__ == "__main__":
    baseline, path, port, workers = sys.argv[1:]
    server = litserve.LitServer(Api(baseline, path), accelerator="cpu", workers_per_device=int(workers))
    server.run(host="127.0.0.1", port=int(port), generate_client_file=False)
