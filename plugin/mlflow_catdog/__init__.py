"""MLflow plugins for catdog-pyfunc; may import `catdog_pyfunc`, never the reverse.

`evaluator`: `mlflow.models.evaluate(…, evaluators="catdog")`. `dataset_source`: a run's pictures, found again.
"""
