"""Slow, obvious oracles: the definition that every fast path is tested against. Never on a hot path."""
