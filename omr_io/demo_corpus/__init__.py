"""A small corpus of real medical images in OpenMedReason's schema, for demonstrations and tests."""

from omr_io.demo_corpus.build import DemoCorpusSummary, build

__all__ = ["DemoCorpusSummary", "build"]
