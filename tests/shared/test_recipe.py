"""Recipes: what is wrong is said with the key, the value and what was expected."""

import pytest
from pydantic import BaseModel, Field

import harvest.config
import train.config
from harvest.config import HarvestConfig
from shared.errors import RecipeError
from shared.recipe import Table, find_recipe, read_recipe, read_table


@pytest.fixture
def recipe(tmp_path):
    def write(text):
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return path

    return write


def harvest_table(**table):
    return read_table(HarvestConfig, {"model": "m"} | table, "[harvest]")


def test_a_recipe_is_read_with_its_overrides(recipe):
    path = recipe('[harvest]\nmodel = "a"\nlayers = [1]\n[[sae]]\nk = 1\n[[sae]]\nk = 2\n')
    raw = read_recipe(path, ["harvest.layers=[2, 3]", "harvest.dataset=org/name", "sae.k=64", "train.lr=1e-3"])
    assert raw == {
        "harvest": {"model": "a", "layers": [2, 3], "dataset": "org/name"},
        "sae": [{"k": 64}, {"k": 64}],
        "train": {"lr": 1e-3},
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("1e-3", 1e-3), ("true", True), ("[1, 2]", [1, 2]), ("bare", "bare"), ('"quoted"', "quoted"),
     ("26 Jul 2024", "26 Jul 2024"), ("a=b", "a=b"), ("", "")],
)
def test_values_of_overrides_are_toml_or_words(text, value):
    assert read_recipe(None, [f"harvest.x={text}"]) == {"harvest": {"x": value}}


def test_overrides_reach_into_tables_of_tables():
    raw = read_recipe(None, ["harvest.template_variables.date_string=01 Jan 2020"])
    assert raw["harvest"]["template_variables"] == {"date_string": "01 Jan 2020"}


def test_an_override_without_a_recipe_changes_the_default_saes():
    default = {"architecture": "batchtopk", "expansion": [8.0, 16.0]}
    assert read_recipe(None, ["sae.k=3"]) == {"sae": [default | {"k": 3}]}
    assert read_recipe(None, ["sae.architecture=topk"]) == {"sae": [default | {"architecture": "topk"}]}
    assert read_recipe(None, ["sae.d_sae=99"]) == {"sae": [{"architecture": "batchtopk", "d_sae": 99}]}
    warm = {"architecture": "batchtopk", "warm_start": "a/b"}
    assert read_recipe(None, ["sae.warm_start=a/b"]) == {"sae": [warm]}
    for width in {"d_sae": 99}, {"expansion": 4}:
        [(key, value)] = width.items()
        overrides = [f"sae.{key}={value}", "sae.warm_start=a/b"]
        assert read_recipe(None, overrides) == read_recipe(None, overrides[::-1]) == {"sae": [warm | width]}
    assert read_recipe(None, []) == {}


def test_an_override_takes_the_place_of_what_says_the_same_in_another_way(recipe):
    path = recipe("[train]\nnum_tokens = 100\nlr = 1e-3\n")
    assert read_recipe(path, ["train.epochs=2"]) == {"train": {"epochs": 2, "lr": 1e-3}}
    assert read_recipe(path, ["train.epochs=2", "train.num_tokens=9"]) == {"train": {"num_tokens": 9, "lr": 1e-3}}
    path = recipe("[[sae]]\nd_sae = 100\n[[sae]]\nexpansion = 2\n")
    assert read_recipe(path, ["sae.warm_start=a/b"])["sae"][1] == {"expansion": 2, "warm_start": "a/b"}
    assert read_recipe(path, ["sae.expansion=4"]) == {"sae": [{"expansion": 4}, {"expansion": 4}]}


@pytest.mark.parametrize("override", ["lr=1", "train.lr", "nosuch.lr=1", "=1", "harvest=1", "", "harvest.a.b=1"])
def test_an_override_of_another_form_is_refused(override, recipe):
    with pytest.raises(RecipeError, match="--set"):
        read_recipe(recipe('[harvest]\na = "x"\n'), [override])


def test_an_unknown_table_names_the_nearest(recipe):
    with pytest.raises(RecipeError, match=r"unknown table \[harvst\]. Did you mean 'harvest'\?"):
        read_recipe(recipe("[harvst]\n"))


@pytest.mark.parametrize("text", ["[harvest", "a = ", "\x00", "[harvest]\nmodel = 1\nmodel = 2"])
def test_a_file_that_is_no_toml_is_refused(recipe, text):
    with pytest.raises(RecipeError, match=r"mine\.toml is not a readable TOML file"):
        read_recipe(recipe(text))


@pytest.mark.parametrize("text", ["harvest = 3", 'train = "x"', "harvest = [1]", "sae = 3", "sae = [3]"])
def test_a_table_must_be_a_table(recipe, text):
    with pytest.raises(RecipeError, match="must be"):
        read_recipe(recipe(text))


def test_an_unknown_recipe_names_those_there_are():
    with pytest.raises(RecipeError, match="No recipe 'nosuch'"):
        find_recipe("nosuch")
    with pytest.raises(RecipeError, match=r"No recipe 'nosuch\.toml'"):
        find_recipe("nosuch.toml")


def test_an_unknown_key_names_the_nearest():
    with pytest.raises(RecipeError) as caught:
        harvest_table(max_lenght=5)
    assert str(caught.value) == "[harvest]: unknown key 'max_lenght'. Did you mean 'max_length'?"


def test_every_problem_has_a_line_of_its_own():
    with pytest.raises(RecipeError) as caught:
        harvest_table(seed="x", num_tokens=0, colour="red")
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_tokens", 0), ("num_tokens", -5), ("num_tokens", "many"), ("max_length", 1), ("max_skipped", 1.5),
     ("rows_per_shard", 100), ("rows_per_shard", 0), ("control_tokens", "ignore"), ("compute_dtype", "float16"),
     ("layers", []), ("layers", [-1]), ("layers", "4"), ("attention", "flash"), ("batch_tokens", 0), ("model", "")],
)
def test_a_value_out_of_range_is_quoted_with_what_was_expected(key, value):
    with pytest.raises(RecipeError) as caught:
        harvest_table(**{key: value})
    [line] = str(caught.value).splitlines()
    assert line.startswith(f"[harvest].{key}")
    assert repr(value) in line


def test_a_missing_key_is_named():
    with pytest.raises(RecipeError, match=r"\[harvest\]\.model is missing"):
        read_table(HarvestConfig, {}, "[harvest]")


def test_an_unknown_key_of_an_inner_table_is_found_there():
    class Inner(Table):
        rate: float = 1.0

    class Outer(Table):
        inner: Inner = Field(default_factory=Inner)

    with pytest.raises(RecipeError, match=r"\[train\]\.inner: unknown key 'ratte'. Did you mean 'rate'\?"):
        read_table(Outer, {"inner": {"ratte": 2}}, "[train]")


def test_layers_are_sorted_and_unique():
    assert harvest_table(layers=[5, 1, 5]).layers == [1, 5]


def tables():
    found = [Table]
    for table in found:
        found += table.__subclasses__()
    return [table for table in found if table.__module__ in {harvest.config.__name__, train.config.__name__}]


@pytest.mark.parametrize("table", tables(), ids=lambda table: table.__name__)
def test_every_field_of_a_table_is_described_under_it(table: type[BaseModel]):
    assert table.__doc__
    for name, field in table.model_fields.items():
        assert field.description, f"{table.__name__}.{name} has no docstring"
