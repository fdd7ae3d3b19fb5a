"""The script MLflow runs to create the model (models-from-code): this file, its package and a bundle, and no pickle."""

import mlflow

from catdog_pyfunc.pyfunc_model import CatDogModel

mlflow.models.set_model(CatDogModel())
