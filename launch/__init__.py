"""What stands round a run and knows Hydra: entrypoint, config check, run directory, export."""
