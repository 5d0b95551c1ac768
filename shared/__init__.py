"""What both stages agree on: the cache, recipes, errors. Imports neither stage, nor torch."""

from shared.reading.cache import open_cache

__all__ = ["open_cache"]
