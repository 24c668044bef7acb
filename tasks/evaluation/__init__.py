"""Metrics and the report: truth, baseline and model side by side."""
