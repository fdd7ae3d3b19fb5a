"""The PyTorch baseline as an MLflow pyfunc (models-from-code)."""

import base64
import io

import mlflow
import pandas as pd
import torch_baseline
from PIL import Image


class BaselineModel(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        self.model = torch_baseline.load(context.artifacts["weights"])

    def predict(self, context, model_input, params=None):
        images = [Image.open(io.BytesIO(base64.b64decode(cell))) for cell in model_input["image"]]
        return pd.DataFrame([torch_baseline.predict(self.model, image) for image in images])


mlflow.models.set_model(BaselineModel())
