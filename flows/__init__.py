"""The wiring: Prefect flows, their parameter models, profiles and the command line."""
