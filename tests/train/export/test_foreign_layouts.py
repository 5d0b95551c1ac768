"""SAEs of other tools do what those tools' encoders do, however they treat the decoder bias, norms and thresholds."""

import json
import logging

import pytest
import torch

from shared.errors import CorruptError, RecipeError, StorageError
from tests.train.export import layouts
from tests.train.export.layouts import K, jump, linear, top
from train.export import load_sae
from train.export.exported import MadeFor

W = layouts.random_weights()
X = layouts.rows()
INT = torch.tensor(K, dtype=torch.int32)


def pre_acts(subtract=True, name="b_enc"):
    x = X.double() - W["b_dec"].double() if subtract else X.double()
    return x @ W["W_enc"].double() + W[name].double()


def gated(subtract):
    gate = pre_acts(subtract)
    magnitude = (gate - W["b_enc"].double()) * W["r_mag"].double().exp() + W["b_mag"].double()
    return magnitude.relu() * (gate > 0)


def some(*names):
    return {name: W[name] for name in names}


NORMS = W["W_dec"].double().norm(dim=1)
MATRICES = some("W_enc", "b_enc", "W_dec", "b_dec")
GATED = {**some("W_enc", "W_dec", "b_dec", "r_mag", "b_mag"), "b_gate": W["b_enc"]}
ONE = torch.tensor(1.25)

SAELENS = {
    "standard": (MATRICES, {"architecture": "standard"}, pre_acts().relu()),
    "standard_raw": (MATRICES, {"architecture": "standard", "apply_b_dec_to_input": False}, pre_acts(False).relu()),
    "jumprelu": (some(*MATRICES, "threshold"), {"architecture": "jumprelu"}, jump(pre_acts(), W["threshold"].double())),
    "jumprelu_raw": (some(*MATRICES, "threshold"), {"architecture": "jumprelu", "apply_b_dec_to_input": False},
                     jump(pre_acts(False), W["threshold"].double())),
    "gated": (GATED, {"architecture": "gated"}, gated(True)),
    "gated_raw": (GATED, {"architecture": "gated", "apply_b_dec_to_input": False}, gated(False)),
    "topk": (MATRICES, {"architecture": "topk", "k": K}, top(pre_acts())),
    "version_5": (MATRICES, {"architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K},
                             "normalize_activations": "none", "finetuning_scaling_factor": False}, top(pre_acts())),
}

DICTIONARIES = {
    "AutoEncoderNew": (linear(W, "decoder.bias"), {}, pre_acts(False).relu()),
    "GatedAutoEncoder": ({"encoder.weight": W["W_enc"].t(), "decoder.weight": W["W_dec"].t(),
                          "decoder_bias": W["b_dec"], "gate_bias": W["b_enc"], "mag_bias": W["b_mag"],
                          "r_mag": W["r_mag"]}, {}, gated(True)),
    "AutoEncoderTopK": (linear(W, "b_dec") | {"k": INT, "threshold": ONE}, {"k": K}, top(pre_acts())),
    "BatchTopKSAE": (linear(W, "b_dec") | {"k": INT, "threshold": ONE}, {"k": K}, jump(pre_acts(), 1.25)),
    "MatryoshkaBatchTopKSAE": (MATRICES | {"k": INT, "threshold": ONE, "group_sizes": torch.tensor([10, 30])}, {"k": K},
                               jump(pre_acts(), 1.25)),
    "JumpReluAutoEncoder": (some(*MATRICES, "threshold"), {}, jump(pre_acts(False), W["threshold"].double())),
}


def assert_does(sae, latents, W_dec=None):
    """Against float64: 1e-5 of the norm is a hundred times float32's rounding of such sums."""
    assert 0 < float((latents > 0).double().mean()) < 0.9
    x_hat = latents @ (W["W_dec"].double() if W_dec is None else W_dec) + W["b_dec"].double()
    assert (sae.encode(X) - latents).norm() <= 1e-5 * latents.norm()
    assert (sae(X) - x_hat).norm() <= 1e-5 * x_hat.norm()


@pytest.mark.parametrize("name", SAELENS)
def test_an_sae_of_saelens_does_what_it_does_there(name, tmp_path):
    tensors, config, latents = SAELENS[name]
    assert_does(load_sae(layouts.write_saelens(tmp_path / "sae", tensors, **config)), latents)


def test_a_topk_that_goes_by_the_decoders_norms_gives_latents_as_of_unit_rows(tmp_path):
    folder = layouts.write_saelens(tmp_path / "sae", MATRICES, architecture="topk", k=K,
                                   rescale_acts_by_decoder_norm=True)
    assert_does(load_sae(folder), top(pre_acts() * NORMS), W["W_dec"].double() / NORMS[:, None])


@pytest.mark.parametrize("dict_class", DICTIONARIES)
def test_a_dictionary_does_what_its_class_does(dict_class, tmp_path):
    tensors, trainer, latents = DICTIONARIES[dict_class]
    sae = load_sae(layouts.write_dictionary(tmp_path / "sae", dict_class, tensors, **trainer))
    assert_does(sae, latents)
    assert sae.made_for == MadeFor("org/fake", 3, "resid_post_layer_3")


def test_the_latents_of_an_autoencoder_are_those_of_a_decoder_with_unit_norms(tmp_path):
    folder = layouts.write_dictionary(tmp_path / "sae", "AutoEncoder", linear(W, "bias"))
    assert_does(load_sae(folder), pre_acts().relu() * NORMS, W["W_dec"].double() / NORMS[:, None])


def test_a_topk_from_before_there_were_buffers_takes_k_from_its_config(tmp_path):
    folder = layouts.write_dictionary(tmp_path / "sae", "AutoEncoderTopK", linear(W, "b_dec"), k=K)
    assert_does(load_sae(folder), top(pre_acts()))


def test_a_threshold_that_was_never_set_is_told(tmp_path, caplog):
    tensors = linear(W, "b_dec") | {"k": INT, "threshold": torch.tensor(-1.0)}
    with caplog.at_level(logging.WARNING):
        sae = load_sae(layouts.write_dictionary(tmp_path / "sae", "BatchTopKSAE", tensors, k=K))
    assert_does(sae, pre_acts().relu())
    assert "none was set while it was trained" in caplog.text


def test_a_sparse_coder_does_what_sparsify_does(tmp_path):
    sae = load_sae(layouts.write_sparsify(tmp_path / "layers.12", layouts.sparse_coder(W)))
    assert_does(sae, top(pre_acts()))
    assert sae.made_for == MadeFor(None, 12, "layers.12")


@pytest.mark.parametrize(("hook", "layer"), [("blocks.9.hook_resid_post", 9), ("blocks.9.hook_resid_pre", 8),
                                             ("blocks.9.hook_mlp_out", 9), ("hook_embed", None), (None, None)])
def test_what_goes_into_a_layer_is_the_output_of_the_one_before(hook, layer, tmp_path):
    folder = layouts.write_saelens(tmp_path / "sae", MATRICES, architecture="standard",
                                   metadata={"model_name": "gpt2", "hook_name": hook})
    assert load_sae(folder).made_for == MadeFor("gpt2", layer, hook)


REFUSED = {
    "architecture must be one of": {"architecture": "batchtopk"},
    "normalize_activations is 'layer_norm'": {"normalize_activations": "layer_norm"},
    "reshape_activations is 'hook_z'": {"reshape_activations": "hook_z"},
    "finetuning_scaling_factor is True": {"finetuning_scaling_factor": True},
    "activation_fn must be relu or topk; got 'tanh-relu'": {"activation_fn_str": "tanh-relu"},
}


@pytest.mark.parametrize("says", REFUSED)
def test_what_does_not_take_raw_activations_is_refused(says, tmp_path):
    folder = layouts.write_saelens(tmp_path / "sae", MATRICES, **{"architecture": "standard", **REFUSED[says]})
    with pytest.raises(RecipeError, match=says):
        load_sae(folder)


@pytest.mark.parametrize(("config", "says"), [({"transcode": True}, "is a transcoder"),
                                              ({"skip_connection": True}, "is a transcoder"),
                                              ({"activation": "groupmax"}, "got 'groupmax'"),
                                              ({"signed": True}, "without sign")])
def test_a_sparse_coder_that_is_no_topk_autoencoder_is_refused(config, says, tmp_path):
    with pytest.raises(RecipeError, match=says):
        load_sae(layouts.write_sparsify(tmp_path / "sae", layouts.sparse_coder(W), **config))


def test_a_class_that_is_not_known_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"dict_class must be one of .* got 'CrossCoder'"):
        load_sae(layouts.write_dictionary(tmp_path / "sae", "CrossCoder", linear(W, "bias")))


@pytest.mark.parametrize(("change", "says"), [
    (lambda tensors: tensors.pop("b_dec"), r"b_dec is missing, expected \[16\]"),
    (lambda tensors: tensors.update(extra=ONE), r"extra is \[\], expected missing"),
    (lambda tensors: tensors.update({"encoder.bias": torch.zeros(3)}), r"b_enc is \[3\], expected \[40\]"),
    (lambda tensors: tensors.update(k=torch.tensor(7)), "trainer.k is 3, but ae.pt was made with 7"),
])
def test_tensors_that_do_not_fit_are_named(change, says, tmp_path):
    tensors = linear(W, "b_dec") | {"k": INT, "threshold": ONE}
    change(tensors)
    with pytest.raises(CorruptError, match=says):
        load_sae(layouts.write_dictionary(tmp_path / "sae", "BatchTopKSAE", tensors, k=K))


class Planted:
    """A pickle that would run something."""

    def __reduce__(self):
        return eval, ("print('planted')",)


@pytest.mark.parametrize("content", [
    {"W_enc": Planted()}, [1, 2], {"W_enc": "text"}, {"W_enc": torch.zeros(1).expand(10**9, 10**9)},
    {"W_enc": torch.zeros(4).to_sparse()},
], ids=["code", "list", "text", "stretched", "sparse"])
def test_an_ae_pt_of_anything_but_tensors_is_refused(content, tmp_path, capsys):
    folder = layouts.write_dictionary(tmp_path / "sae", "AutoEncoder", content)
    with pytest.raises(CorruptError, match=r"ae\.pt is no (file of tensors|dictionary of plain tensors)"):
        load_sae(folder)
    assert "planted" not in capsys.readouterr().out


def test_damaged_weights_are_refused(tmp_path):
    folder = layouts.write_dictionary(tmp_path / "sae", "AutoEncoder", linear(W, "bias"))
    (folder / "ae.pt").write_bytes((folder / "ae.pt").read_bytes()[:-200])
    with pytest.raises(CorruptError, match=r"ae\.pt is no file of tensors"):
        load_sae(folder)


def test_a_folder_without_a_layout_says_which_there_are_and_what_is_inside(tmp_path):
    for number in (3, 12):
        layouts.write_sparsify(tmp_path / f"layers.{number}", layouts.sparse_coder(W))
    with pytest.raises(RecipeError, match=r"sae\.safetensors \(sparsify\).* Those inside it: layers\.12, layers\.3\."):
        load_sae(tmp_path)


@pytest.mark.parametrize(("name", "says"), [("sae.safetensors", "weights are missing"),
                                            ("cfg.json", r"cfg\.json is missing")])
def test_a_folder_with_half_of_a_layout_says_which_file_is_missing(name, says, tmp_path):
    folder = layouts.write_sparsify(tmp_path / "sae", layouts.sparse_coder(W))
    (folder / name).unlink()
    with pytest.raises(StorageError, match=says):
        load_sae(folder)


@pytest.mark.parametrize("text", ["[]", "{", '{"d_in": 16}', '{"trainer": {"dict_class": "AutoEncoder"}}',
                                  '{"a": ' * 60])
def test_a_config_that_is_none_is_refused(text, tmp_path):
    sparse = layouts.write_sparsify(tmp_path / "sparse", layouts.sparse_coder(W)) / "cfg.json"
    dictionary = layouts.write_dictionary(tmp_path / "dictionary", "AutoEncoder", linear(W, "bias")) / "config.json"
    saelens = layouts.write_saelens(tmp_path / "saelens", MATRICES) / "cfg.json"
    for path in (sparse, dictionary, saelens):
        path.write_text(text)
        if path == dictionary and "trainer" in text:
            continue  # sizes follow from the weights
        with pytest.raises(CorruptError, match=r"config|JSON"):
            load_sae(path.parent)


def test_a_model_of_json_types_that_nobody_expects_is_no_crash(tmp_path):
    folder = layouts.write_saelens(tmp_path / "sae", MATRICES, architecture="standard",
                                   metadata={"model_name": ["a"], "hook_name": 3})
    assert load_sae(folder).made_for == MadeFor(None, None, None)
    assert json.loads((folder / "cfg.json").read_text()) == load_sae(folder).config
