"""Predictors, metrics with intervals, plots, galleries, latency."""
