"""Data sets: bundled and synthetic ones by default; imports nothing of numdl."""

from numdl.data import synthetic
from numdl.data.bundled import Dataset, digits

__all__ = ["Dataset", "digits", "synthetic"]
