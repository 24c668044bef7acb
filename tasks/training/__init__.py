"""One training loop for all families, on Ray Train, recorded in MLflow; checkpoints and the model registry."""
