"""Training, evaluation and the registry; needs the [train] extra and never travels with a model."""
