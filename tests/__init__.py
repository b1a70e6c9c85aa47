"""A package, so that no other `tests` on the path takes the place of its helpers."""
