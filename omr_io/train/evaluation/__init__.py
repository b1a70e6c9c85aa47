"""Accuracy of models on shard sets, with baselines: what `omr-io eval` does."""
