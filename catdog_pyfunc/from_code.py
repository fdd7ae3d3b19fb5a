"""What MLflow runs to make the model (models-from-code): a model is this file, its package and its bundle, and no pickle."""

import mlflow

from catdog_pyfunc.pyfunc_model import CatDogModel

mlflow.models.set_model(CatDogModel())
