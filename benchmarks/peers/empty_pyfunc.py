"""MLflow's own path: a model that does nothing, and answers as this project's does."""

import json
from pathlib import Path

import mlflow


class Nothing(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        self.rows = json.loads(Path(context.artifacts["answer"]).read_text())

    def predict(self, context, model_input, params=None):
        return self.rows


mlflow.models.set_model(Nothing())
