"""Monitoring: whether what a model is asked still resembles what it was tested on."""
