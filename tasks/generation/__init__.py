"""A registered model makes a video."""
