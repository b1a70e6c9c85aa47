"""Shards that another program wrote: index and manifest for them, their samples as records.

The tars stay where they are and are never written to.
"""
