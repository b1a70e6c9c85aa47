"""A page to look at a shard set: one HTML file that loads nothing else."""

from omr_io.gallery.choose import FILTERS, choose
from omr_io.gallery.page import GalleryOptions, GallerySummary, write_gallery

__all__ = ["FILTERS", "GalleryOptions", "GallerySummary", "choose", "write_gallery"]
