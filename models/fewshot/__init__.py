"""Few-shot adversarial talking heads (Zakharov et al. 2019, arXiv 1905.08233): driven by landmarks."""
