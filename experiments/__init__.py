"""Experiments: one question a file. `run(config)` does the work, `main` only parses flags."""
