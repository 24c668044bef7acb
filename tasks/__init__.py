"""The steps of the pipeline: plain functions that do one thing, with their thin Prefect tasks beside them."""
