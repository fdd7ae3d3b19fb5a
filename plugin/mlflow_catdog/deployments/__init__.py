"""The deployment target `catdog`: `mlflow deployments … -t catdog`."""
