"""Benchmarks: one process a measurement, JSON out."""
