"""MLflow plugins for catdog-pyfunc; may import `catdog_pyfunc`, never the reverse.

`evaluator`: `mlflow.models.evaluate(…, evaluators="catdog")`. `deployments`: `mlflow deployments … -t catdog`, with
`runtime` in its containers. `dataset_source`: finds the images of a run again.
`ray`: `serve run mlflow_catdog.ray:app model_uri=…`.
"""
