"""Networks, losses and samplers of the model families, in plain PyTorch."""
