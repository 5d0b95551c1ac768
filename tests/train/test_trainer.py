"""One SAE in training: its figures and its state."""

import pytest
import torch

from shared.errors import IdentityError
from train.architectures import ARCHITECTURES
from train.architectures.base import RunLength
from train.config import TrainConfig
from train.trainer import Trainer

D_IN, D_SAE, BATCH = 8, 32, 64


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_dense_latents_are_those_active_on_over_a_tenth_of_the_tokens_since_the_last_figures(name):
    sae = ARCHITECTURES[name](ARCHITECTURES[name].Config(d_sae=D_SAE), D_IN, RunLength(8, BATCH))
    trainer = Trainer(name, sae, 1e-3, TrainConfig(), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    active = []
    kept = sae.after_step

    def after_step(loss, batch_size, step):
        active.append(loss.counts.clone())
        kept(loss, batch_size, step)

    sae.after_step = after_step
    for start, stop in ((0, 3), (3, 8)):
        active.clear()
        for step in range(start, stop):
            x = torch.randn(BATCH, D_IN, generator=generator) * torch.linspace(4, 0.1, D_IN)
            trainer.step(x, x.var(), step)
        dense = int((torch.stack(active).sum(0) > 0.1 * (stop - start) * BATCH).sum())
        assert dense > 0
        assert trainer.figures(stop - 1)["dense_latents"] == dense


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_beta2_is_the_rule_of_the_runs_length_where_none_is_given(name):
    for given, found in ((None, 0.995), (0.9, 0.9)):
        sae = ARCHITECTURES[name](ARCHITECTURES[name].Config(d_sae=D_SAE), D_IN, RunLength(2000, BATCH))
        assert Trainer(name, sae, 1e-3, TrainConfig(beta2=given), torch.device("cpu")).beta2 == pytest.approx(found)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_loss_of_a_line_is_the_mean_of_what_was_minimised(name):
    sae = ARCHITECTURES[name](ARCHITECTURES[name].Config(d_sae=D_SAE), D_IN, RunLength(8, BATCH))
    trainer = Trainer(name, sae, 1e-3, TrainConfig(), torch.device("cpu"))
    minimised = []
    kept = sae.loss
    sae.loss = lambda x, step: minimised.append(kept(x, step)) or minimised[-1]
    for step in range(3):
        x = torch.randn(BATCH, D_IN, generator=torch.Generator().manual_seed(step))
        trainer.step(x, x.var(), step)
    mean = sum(float(loss.total.detach()) for loss in minimised) / 3
    assert trainer.figures(2)["loss"] == pytest.approx(mean, rel=1e-6)


def test_a_state_of_another_version_is_refused_by_the_name_of_what_differs():
    def trainer():
        sae = ARCHITECTURES["topk"](ARCHITECTURES["topk"].Config(d_sae=D_SAE, k=3), D_IN, RunLength(8, BATCH))
        return Trainer("mine", sae, 1e-3, TrainConfig(), torch.device("cpu"))

    state = trainer().state()
    trainer().load_state(state)
    others = [("sae.tokens_fired", {name: value for name, value in state.items() if name != "sae.tokens_fired"}),
              ("sae.b_new", state | {"sae.b_new": torch.zeros(3)}),
              ("figures", state | {"figures": torch.zeros(len(state["figures"]) + 1)})]
    for name, other in others:
        with pytest.raises(IdentityError, match=rf"checkpoint of mine has or lacks {name}: another version.*--fresh"):
            trainer().load_state(other)


def test_a_clipping_of_zero_is_none():
    x = torch.randn(BATCH, D_IN, generator=torch.Generator().manual_seed(0)) * 100
    found = []
    for grad_clip in (0, None, 1e9, 1e-3):
        sae = ARCHITECTURES["topk"](ARCHITECTURES["topk"].Config(d_sae=D_SAE, k=3), D_IN, RunLength(8, BATCH))
        trainer = Trainer("", sae, 1e-3, TrainConfig(grad_clip=grad_clip), torch.device("cpu"))
        for step in range(3):
            trainer.step(x * (step + 1), x.var(), step)
        found.append(sae.W_enc.detach().clone())
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[3])
