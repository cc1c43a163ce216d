"""The catalog: a cache in SQLite of what storage says. See `catalog.py`."""

from holdfast.catalog.catalog import Catalog, Reusable
from holdfast.catalog.rows import ArtifactBlob, ArtifactEntry, BlobRow, Counts, Location, TagEntry
from holdfast.catalog.search import Search
from holdfast.catalog.unusable import CatalogUnusable

__all__ = [
    "ArtifactBlob",
    "ArtifactEntry",
    "BlobRow",
    "Catalog",
    "CatalogUnusable",
    "Counts",
    "Location",
    "Reusable",
    "Search",
    "TagEntry",
]
