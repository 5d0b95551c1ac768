"""Comparisons that are none: of too few SAEs, of what cannot be paired, of files that do not belong together."""

import json

from safetensors.numpy import load_file, save_file

from pipelines.comparison.comparison import compare
from tests.error_cases.case import case
from tests.pipelines.planted import make_rows, plant, write


def _two(w, **changes):
    return [write(w.tmp / "a", plant(make_rows())), write(w.tmp / "b", plant(make_rows()), **{"k": 16, **changes})]


@case(2, "got 1", then="runs/demo/layer9 --out comparison")
def a_comparison_of_one_sae(w):
    compare(_two(w)[:1])


@case(2, "a is given twice", then="Give each SAE once")
def an_sae_compared_with_itself(w):
    folder, _ = _two(w)
    compare([folder, folder])


@case(2, "nosuch is no SAE", then="runs/<cache>/layer<L>/<sae name>")
def a_comparison_with_a_folder_that_is_no_sae(w):
    compare([*_two(w), w.tmp / "nosuch"])


@case(2, "All 2 SAEs", "BatchTopK 4x, k 32", then="of another recipe")
def a_comparison_of_seeds_alone(w):
    compare(_two(w, k=32, seed=1))


@case(2, "nosuch", then="as a RUN too")
def a_reference_that_is_not_compared(w):
    compare(_two(w), against=w.tmp / "nosuch")


@case(2, "copy", "cache_id", then="Theirs:")
def a_cache_of_none_of_the_saes_that_are_compared(w):
    compare(_two(w), caches=[str(w.copy())])


@case(2, "cccccccccccc", then="--cache NAME|PATH")
def saes_of_two_caches_one_of_which_is_not_there(w):
    compare(_two(w, cache_id="d" * 32))


@case(65, "b was evaluated by another version", then="python -m pipelines evaluate --layer 9 --cache planted")
def a_comparison_with_an_older_evaluation(w):
    folders = _two(w)
    content = json.loads((folders[1] / "eval.json").read_text())
    (folders[1] / "eval.json").write_text(json.dumps(content | {"format_version": 1}))
    compare(folders)


@case(76, "of layer 9", "of layer 15", then="Compare SAEs of one layer")
def a_comparison_across_layers(w):
    compare(_two(w, layer=15))


@case(76, "12 and 12, of which 0", then="hold out the same ones")
def a_comparison_on_different_held_out_conversations(w):
    rows = make_rows()
    rows.keys = rows.keys + 1
    compare([write(w.tmp / "a", plant(make_rows())), write(w.tmp / "b", plant(rows), k=16)])


@case(76, "held-out rows", "the cache has grown", then="python -m pipelines evaluate --layer 9")
def a_comparison_from_before_and_after_a_cache_has_grown(w):
    compare([write(w.tmp / "a", plant(make_rows())), write(w.tmp / "b", plant(make_rows(13)), k=16)])


@case(77, "eval_conversations.safetensors", "it lacks 'key'", then="python -m pipelines evaluate")
def sums_by_conversation_without_keys(w):
    folders = _two(w)
    path = folders[1] / "eval_conversations.safetensors"
    arrays = load_file(path)
    arrays.pop("key")
    save_file(arrays, path, {"subsets": "[]"})
    compare(folders)


@case(77, "does not belong to the eval.json beside it", then="python -m pipelines evaluate")
def sums_of_another_evaluation(w):
    folders = _two(w)
    (folders[1] / "eval.json").write_bytes((folders[1] / "eval.json").read_bytes().replace(b'"mse": ', b'"mse": 1'))
    compare(folders)
