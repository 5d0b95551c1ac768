"""SAEs that were made elsewhere, exports for other tools, tables: what cannot be opened, judged, written or listed."""

from pathlib import Path

from pipelines.foreign_source import find_sae
from pipelines.paper.rows import find_folders
from pipelines.paper.sae_set import paper_caches
from tests.error_cases.case import case
from tests.train import tiny_run
from tests.train.export import layouts
from train.evaluation.foreign import add_foreign
from train.export import load_sae
from train.export.convert import export_sae


def _written(w, **config):
    weights = layouts.random_weights()
    tensors = {name: weights[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    return layouts.write_saelens(w.tmp / "sae", tensors, **{"architecture": "standard", **config})


@case(2, "'nosuch'", then="org/name")
def an_sae_that_is_neither_a_folder_nor_a_repository(w):
    find_sae("nosuch")


@case(75, "'org/sae'", then="--sae path/to/folder")
def an_sae_on_a_hub_that_cannot_be_reached(w):
    w.patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(w.tmp / "hub"))
    find_sae("org/sae/layers.9")


@case(2, "is no SAE", "sae.safetensors", "ae.pt", then="inside it: layers.3")
def a_folder_of_several_saes(w):
    layouts.write_sparsify(w.tmp / "all" / "layers.3", layouts.sparse_coder(layouts.random_weights()))
    load_sae(w.tmp / "all")


@case(74, "cfg.json is there", "missing", then="permissions")
def a_foreign_sae_without_its_weights(w):
    folder = _written(w)
    (folder / "sae_weights.safetensors").unlink()
    load_sae(folder)


@case(2, "width 16", "24 wide", then="for another model")
def an_sae_of_another_width(w):
    add_foreign(w.tmp, tiny_run.cache(), 3, _written(w), "sae")


@case(2, "'layer_norm'", then="Fold it into the weights")
def an_sae_that_normalises_its_input(w):
    load_sae(_written(w, normalize_activations="layer_norm"))


@case(77, "W_enc is [16, 40], expected [16, 41]", then="download")
def weights_of_another_size_than_the_config_says(w):
    load_sae(_written(w, d_sae=41))


@case(77, "ae.pt", then="--sae FOLDER")
def an_ae_pt_that_is_no_file_of_tensors(w):
    folder = layouts.write_dictionary(w.tmp / "dictionary", "AutoEncoder", {})
    (folder / "ae.pt").write_bytes(b"not a file of tensors")
    load_sae(folder)


def _trained(w, architecture):
    recipe = {"train": tiny_run.RECIPE["train"] | {"num_tokens": 128},
              "sae": [table for table in tiny_run.RECIPE["sae"] if table["architecture"] == architecture]}
    return tiny_run.train(w.tmp / "runs", recipe)[1][0]


@case(2, "batchtopk-48-k3", "topk alone", then="--format dictionary_learning")
def an_sae_that_sparsify_cannot_represent(w):
    export_sae(_trained(w, "batchtopk"), "sparsify", w.tmp / "out")


@case(2, "holds something else than", then="new folder")
def an_export_onto_something_else(w):
    folder = _trained(w, "topk")
    export_sae(folder, "sparsify", folder)


@case(2, "nosuch", then="runs/<cache>/layer<L>/<sae name>")
def an_export_of_nothing(w):
    export_sae(Path("nosuch"), "sparsify", w.tmp / "out")


@case(2, "'nosuch'", then="make train")
def a_table_of_a_folder_that_is_not_there(w):
    find_folders([Path("nosuch")])


@case(2, "No evaluated SAE under", "runs", then="make train LAYER=12")
def a_table_of_nothing(w):
    (w.tmp / "runs").mkdir()
    find_folders([w.tmp / "runs"])


@case(2, "'gpt2'", then="Expected some of")
def costs_of_a_model_of_unknown_size(w):
    paper_caches(["gpt2"])
