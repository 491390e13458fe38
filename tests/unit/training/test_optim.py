from itertools import pairwise

import pytest
import torch
from torch import nn

from amlp.errors import UserError
from amlp.models.encoder import EncoderPlan
from amlp.models.segmenter import build_network
from amlp.params import PretrainParams
from amlp.training.optim import WeightAverage, adamw, check_finite, finite_mean, guarded_step, learning_rate
from amlp.training.pretrain import build_model


def test_the_learning_rate_warms_up_and_falls_to_zero():
    rates = [learning_rate(step, 100, peak=1.0, warmup=0.1) for step in range(100)]
    assert rates.index(max(rates)) in (9, 10)
    assert all(b > a for a, b in pairwise(rates[:10]))
    assert all(b < a for a, b in pairwise(rates[10:]))
    assert 0 < rates[0] < 0.2
    assert rates[-1] < 0.001


def build():
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = adamw([{"parameters": model.named_parameters(), "scale": 1.0}], weight_decay=0.1, betas=(0.9, 0.95))
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    return model, optimizer


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(bad):
    model, optimizer = build()
    model(torch.ones(2, 4)).sum().backward()
    guarded_step(optimizer, list(model.parameters()), 1.0)
    before = [p.detach().clone() for p in model.parameters()]
    moments = [s["exp_avg"].clone() for s in optimizer.state.values()]
    (model(torch.ones(2, 4)).sum() * bad).backward()
    norm = guarded_step(optimizer, list(model.parameters()), 1.0)
    assert not torch.isfinite(norm)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(torch.equal(a, s["exp_avg"]) for a, s in zip(moments, optimizer.state.values(), strict=True))
    model(torch.ones(2, 4)).sum().backward()
    assert torch.isfinite(guarded_step(optimizer, list(model.parameters()), 1.0))
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_biases_do_not_decay():
    model, optimizer = build()
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays == {id(model.weight): 0.1, id(model.bias): 0.0}


@pytest.mark.parametrize("network", ["vit", "unet", "pretrain"])
def test_matrices_decay_and_norms_biases_and_tokens_do_not(network):
    """A head with a single output decays as any other."""
    plan = EncoderPlan(channels=1, height=32, width=32, patch=8, dim=24, depth=2, heads=3)
    model = build_model(plan, PretrainParams()) if network == "pretrain" else build_network(network, plan, 8)
    optimizer = adamw([{"parameters": model.named_parameters(), "scale": 1.0}], weight_decay=0.1, betas=(0.9, 0.95))
    decaying = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    matrices = {
        id(module.weight) for module in model.modules() if isinstance(module, nn.Linear | nn.modules.conv._ConvNd)
    }
    assert decaying == matrices


def test_means_leave_skipped_steps_out():
    values = torch.tensor([[1.0, 2.0], [torch.nan, 5.0], [3.0, 4.0]])
    assert finite_mean(values).tolist() == [2.0, 3.0]


def test_few_skipped_steps_are_counted_and_many_stop_the_training():
    norms = torch.ones(20)
    norms[3] = torch.nan
    assert check_finite(norms, epoch=1) == 1
    with pytest.raises(UserError, match=r"diverged in epoch 2: 20 of 20 steps"):
        check_finite(torch.full((20,), torch.inf), epoch=2)


def test_the_average_follows_the_weights_slowly_and_early_weights_are_forgotten():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 0.0)
    average = WeightAverage(model, 0.9)
    nn.init.constant_(model.weight, 1.0)
    average.update(model, 0)
    assert average.model.weight.item() == pytest.approx(0.9)
    for step in range(1, 400):
        average.update(model, step)
    assert average.model.weight.item() == pytest.approx(1.0, abs=1e-6)
