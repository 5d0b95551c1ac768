"""Which cache a command means: by name, by path, or the only one that holds the layer."""

from pathlib import Path

from shared.errors import RecipeError, UserError
from shared.format.layout import PLAN
from shared.reading.cache import Cache, open_cache

CACHES = Path("caches")


def choose_cache(name: str | None, *layers: int) -> Cache:
    """The cache called by name or path, or the one under caches/ that holds the layers.

    Raises:
        RecipeError: there is none, several hold the layers, or the one named does not hold them.
    """
    if name is not None:
        path = Path(name)
        if not (path / PLAN).is_file() and (CACHES / name / PLAN).is_file():
            path = CACHES / name
        if not (path / PLAN).is_file():
            raise RecipeError(f"No cache {name!r}: there is no {path / PLAN}{_known()}")
        cache = open_cache(path)
        for layer in layers:
            if layer not in cache.layers:
                raise RecipeError(_no_layer(cache, layer))
        return cache
    caches = _all_caches()
    holding = [cache for cache in caches if set(layers) <= set(cache.layers)]
    wanted = f"layer{'s' if len(layers) > 1 else ''} {' and '.join(map(str, layers))}"
    if len(holding) == 1:
        return holding[0]
    if not caches:
        raise RecipeError(f"There is no cache under {CACHES}/ yet. Make one: make harvest MODEL=smollm2-135m-instruct, "
                          "or name one with --cache PATH.")
    if holding:
        names = ", ".join(cache.name for cache in holding)
        raise RecipeError(f"Several caches hold {wanted}: {names}. Choose one: --cache {holding[0].name} "
                          f"(make: CACHE={holding[0].name}).")
    if len(caches) == 1:
        raise RecipeError(_no_layer(caches[0], next(layer for layer in layers if layer not in caches[0].layers)))
    raise RecipeError(f"No cache under {CACHES}/ holds {wanted}. There are: "
                      + "; ".join(f"{cache.name} (layers {_layers(cache)})" for cache in caches) + ".")


def _no_layer(cache: Cache, layer: int) -> str:
    return (f"{cache.path} does not hold layer {layer}; layers there: {_layers(cache)}. To harvest it too: "
            f"python -m harvest add-layers {cache.path} --layers {layer}")


def _layers(cache: Cache) -> str:
    return ", ".join(map(str, cache.layers)) or "none yet"


def _all_caches() -> list[Cache]:
    caches = []
    for plan in sorted(CACHES.glob(f"*/{PLAN}")):
        try:
            cache = open_cache(plan.parent)
            _ = cache.layers  # reads the records
            caches.append(cache)
        except UserError:  # one damaged cache must not hide the others
            continue
    return caches


def _known() -> str:
    names = [cache.name for cache in _all_caches()]
    return f". Caches here: {', '.join(names)}." if names else ", and no cache under caches/ either."
