"""omr_io: data loading and tokenization for training medical vision-language models."""

__version__ = "0.1.0"

__all__ = ["__version__"]
