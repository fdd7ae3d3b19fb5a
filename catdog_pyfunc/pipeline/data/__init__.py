"""Datasets: class folders, splits by digest, corrupt images, the synthetic sample, MLflow data sources."""
