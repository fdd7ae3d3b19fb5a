"""LitServe, as its docs say: litserve_app.py plain|onnx_way <weights or graph> <port> <workers>."""

import base64
import importlib
import io
import sys

import litserve
from PIL import Image


class Api(litserve.LitAPI):
    def __init__(self, way: str, path: str) -> None:
        super().__init__()
        self.name, self.path = way, path

    def setup(self, device):
        self.way = importlib.import_module(self.name)
        self.model = self.way.load(self.path)

    def decode_request(self, request):
        return Image.open(io.BytesIO(base64.b64decode(request["image"])))

    def predict(self, picture):
        return self.way.predict(self.model, picture)

    def encode_response(self, output):
        return output


if __name__ == "__main__":
    way, path, port, workers = sys.argv[1:]
    server = litserve.LitServer(Api(way, path), accelerator="cpu", workers_per_device=int(workers))
    server.run(host="127.0.0.1", port=int(port), generate_client_file=False)
