"""Other people's trainers, one module each; they are imported by name, as `omr_io.integrations.hf`.

Lightning needs none: a `DataLoader` is an iterable with a length and a state, which is all it asks.
"""
