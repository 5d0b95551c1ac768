"""What both stages agree on: the cache, recipes, errors. Imports neither stage, nor torch."""

from shared.cache import open_cache

__all__ = ["open_cache"]
