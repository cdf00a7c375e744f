"""Benchmarks: what the package's steps cost, one question a file. They run from the clone."""
