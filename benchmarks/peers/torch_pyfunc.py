"""The plain way as an MLflow pyfunc, made from code."""

import base64
import io

import mlflow
import pandas as pd
import plain
from PIL import Image


class PlainModel(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        self.model = plain.load(context.artifacts["weights"])

    def predict(self, context, model_input, params=None):
        pictures = [Image.open(io.BytesIO(base64.b64decode(cell))) for cell in model_input["image"]]
        return pd.DataFrame([plain.predict(self.model, picture) for picture in pictures])


mlflow.models.set_model(PlainModel())
