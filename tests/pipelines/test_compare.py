"""What may be compared with what: sets of seeds, references, and everything that is refused."""

import shutil

import numpy as np
import pytest

from pipelines.comparison.comparison import compare
from pipelines.comparison.members import read_members
from pipelines.comparison.sets import make_sets
from shared.errors import CorruptError, DataError, IdentityError, RecipeError
from tests.pipelines.planted import Planted, make_rows, plant, write


@pytest.fixture
def rows():
    return make_rows()


def labels_of(folders):
    return [(one.label, len(one.members)) for one in make_sets(read_members(folders)[0])]


def test_saes_that_differ_in_their_seeds_alone_are_one_set(tmp_path, rows):
    folders = [write(tmp_path / f"{k}-{seed}", plant(rows), seed=seed, k=k) for k in (16, 32) for seed in (0, 1, 2)]
    folders += [write(tmp_path / f"order{seed}", plant(rows), seed=0, k=64, data_seed=seed) for seed in (0, 1)]
    assert labels_of(folders) == [("BatchTopK 4x, k 16", 3), ("BatchTopK 4x, k 32", 3), ("BatchTopK 4x, k 64", 2)]


def test_sets_of_one_label_say_what_they_differ_in(tmp_path, rows):
    folders = [write(tmp_path / f"{lr}", plant(rows), lr=lr) for lr in (0.001, 0.002)]
    assert labels_of(folders) == [("BatchTopK 4x, k 32, lr 0.001", 1), ("BatchTopK 4x, k 32, lr 0.002", 1)]
    copies = [write(tmp_path / name, plant(rows)) for name in ("copy1", "copy2")]
    assert [label for label, _ in labels_of(copies)] == [f"BatchTopK 4x, k 32, {copy}" for copy in copies]


def test_each_set_is_compared_with_that_of_the_first_curve_whose_l0_is_the_nearest(tmp_path, rows):
    folders = [write(tmp_path / f"a{k}", plant(rows, l0=k), k=k) for k in (16, 64)]
    folders += [write(tmp_path / f"b{k}", plant(rows, l0=k + 2), k=k, batch_size=16) for k in (64, 16)]
    comparison = compare(folders)
    assert list(comparison.against.items()) == [
        (f"BatchTopK 4x, k {k}, batch_size 16", f"BatchTopK 4x, k {k}, batch_size 8") for k in (64, 16)]
    assert [line.split(" has ")[0] for line in comparison.warnings] == ["BatchTopK 4x, k 16, batch_size 16"]  # 18 to 16
    named = compare(folders, against=folders[3])
    assert set(named.against.values()) == {"BatchTopK 4x, k 16, batch_size 16"}
    assert len(named.against) == 3
    alone = compare(folders[:2])  # one curve: its first set is the reference
    assert alone.against == {"BatchTopK 4x, k 64": "BatchTopK 4x, k 16"}


def test_an_l0_that_is_not_matched_is_marked_where_it_is(tmp_path, rows):
    sae = plant(rows)
    more = Planted(rows, sae.x_hat, sae.active + 3 * rows.member[:, 0])  # on content alone
    comparison = compare([write(tmp_path / "a", sae), write(tmp_path / "b", more, batch_size=16)])
    marks = {row.subset: row.l0_matched for row in comparison.differences}
    assert marks["content"] == "no"
    warning, = comparison.warnings
    assert "on content tokens (+9 %)" in warning
    assert compare([tmp_path / "a", write(tmp_path / "c", sae, batch_size=16)]).warnings == []


def test_a_folder_of_a_layer_stands_for_all_saes_in_it(tmp_path, rows):
    for name in "ba":
        write(tmp_path / "layer9" / name, plant(rows), batch_size=ord(name))
    (tmp_path / "layer9" / "checkpoints").mkdir()
    members, _ = read_members([tmp_path / "layer9"])
    assert [member.folder.name for member in members] == ["a", "b"]


def test_that_seeds_are_missing_is_said(tmp_path, rows):
    folders = [write(tmp_path / f"a{seed}", plant(rows), seed=seed) for seed in (0, 1)]
    folders.append(write(tmp_path / "b", plant(rows), k=64, batch_size=16))
    note, = [note for note in compare(folders).notes if "seed" in note]
    assert note.startswith("There is one seed of BatchTopK 4x, k 64:")


@pytest.mark.parametrize(("change", "error", "message"), [
    pytest.param({"layer": 15}, IdentityError, r"a is of layer 9 and \S+b of layer 15", id="layer"),
    pytest.param({"d_in": 8}, CorruptError, r"does not belong to the eval.json", id="width"),
    pytest.param({"cache_id": "d" * 32}, RecipeError,
                 r"The cache of \S+a \(cache_id cccccccccccc\) is not under caches/", id="cache"),
])
def test_saes_of_another_layer_or_cache_are_refused(tmp_path, rows, monkeypatch, change, error, message):
    monkeypatch.chdir(tmp_path)
    folders = [write(tmp_path / "a", plant(rows)), write(tmp_path / "b", plant(rows), **change)]
    with pytest.raises(error, match=message):
        compare(folders)


def test_other_held_out_conversations_are_refused_with_how_many_there_are(tmp_path, rows):
    other = make_rows()
    other.keys = rows.keys.copy()
    other.keys[3] += np.uint64(1)
    folders = [write(tmp_path / "a", plant(rows)), write(tmp_path / "b", plant(other), batch_size=16)]
    with pytest.raises(IdentityError, match=r"different held-out conversations: 12 and 12, of which 11 are the same"):
        compare(folders)


def test_a_cache_that_has_grown_in_between_is_refused(tmp_path, rows):
    folders = [write(tmp_path / "a", plant(rows)), write(tmp_path / "b", plant(make_rows(13)), batch_size=16)]
    with pytest.raises(IdentityError, match=r"the cache has grown in between. Evaluate all again"):
        compare(folders)


def test_what_is_no_comparison_is_refused(tmp_path, rows):
    folders = [write(tmp_path / f"a{seed}", plant(rows), seed=seed) for seed in (0, 1)]
    with pytest.raises(RecipeError, match=r"expected two SAEs or more, got 1"):
        compare(folders[:1])
    with pytest.raises(RecipeError, match=r"a0 is given twice"):
        compare([folders[0], folders[1], tmp_path / "a1" / ".." / "a0"])
    with pytest.raises(RecipeError, match=r"All 2 SAEs differ in their seeds alone \(BatchTopK 4x, k 32\)"):
        compare(folders)
    with pytest.raises(RecipeError, match=r"nosuch is no SAE"):
        compare([folders[0], tmp_path / "nosuch"])
    folders.append(write(tmp_path / "b", plant(rows), k=16))
    with pytest.raises(RecipeError, match=r"--against '\S+c' is none of the SAEs that are compared"):
        compare(folders, against=tmp_path / "c")


def test_files_of_two_evaluations_and_of_another_version_are_refused(tmp_path, rows):
    first = write(tmp_path / "a", plant(rows))
    other = write(tmp_path / "b", plant(rows, 0.5), k=16)
    (other / "eval.json").write_text((other / "eval.json").read_text().replace('"format_version": 2',
                                                                                '"format_version": 1'))
    with pytest.raises(DataError, match=r"b was evaluated by another version.*evaluate --layer 9 --cache planted"):
        compare([first, other])
    shutil.copy(first / "eval.json", other / "eval.json")
    with pytest.raises(CorruptError, match=r"b/eval_conversations.safetensors does not belong to the eval.json beside"):
        compare([first, other])
