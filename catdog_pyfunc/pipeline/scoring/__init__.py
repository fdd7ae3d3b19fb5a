"""Scoring: a model's predictions for many images, on all cores of this machine or on a Spark cluster."""
