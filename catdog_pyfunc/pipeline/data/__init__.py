"""Datasets: class folders, splits by digest, corrupt files, the synthetic sample, MLflow data sources."""
