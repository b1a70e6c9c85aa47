"""Slow, obvious oracles that every fast path is tested against; never on a hot path."""
