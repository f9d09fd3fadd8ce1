"""Benchmarks: scripts to run, not part of the package."""
