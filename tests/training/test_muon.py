"""Muon against its definition in float64, against PyTorch's AdamW, and against PyTorch's Muon."""

import copy

import pytest
import torch
from torch import nn

from ddpm_hf.training.muon import COEFFICIENTS, ITERATIONS, Muon, orthogonal


@pytest.mark.parametrize("shape", [(8, 72), (72, 8), (16, 16)])
def test_singular_values_are_made_equal(shape):
    """The iterations keep the singular vectors and map each singular value by a polynomial."""
    matrices = torch.randn(3, *shape)
    u, s, v = torch.linalg.svd(matrices.double(), full_matrices=False)
    s = s / s.norm(dim=1, keepdim=True)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        s = a * s + b * s**3 + c * s**5
    torch.testing.assert_close(orthogonal(matrices).double(), (u * s[:, None]) @ v, rtol=0, atol=1e-4)
    assert not orthogonal(torch.zeros(1, *shape)).any()


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv_in, self.conv_out = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 3, 3)
        self.wide, self.same, self.shortcut = nn.Conv2d(8, 16, 3), nn.Conv2d(8, 16, 3), nn.Conv2d(16, 8, 1)
        self.linear, self.norm = nn.Linear(8, 8), nn.GroupNorm(2, 8)
        self.frozen = nn.Conv2d(8, 8, 3).requires_grad_(False)


def steps_of(optimizer, network, count=5):
    """Take steps with random gradients, the same for each optimizer."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        for parameter in network.parameters():
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = gradient if parameter.requires_grad else None
        optimizer.step()
    return dict(network.named_parameters())


def test_only_inner_convolutions_take_other_steps_than_with_adamw():
    options = {"lr": 1e-2, "betas": (0.9, 0.99), "weight_decay": 0.1, "fused": True}
    network, other = Network(), Network()
    other.load_state_dict(network.state_dict())
    mine = steps_of(Muon(network, **options), network)
    theirs = steps_of(torch.optim.AdamW(other.parameters(), **options), other)
    same = {name for name in mine if torch.equal(mine[name], theirs[name])}
    assert mine.keys() - same == {"wide.weight", "same.weight", "shortcut.weight"}


def test_a_step_is_left_out_where_a_flag_says_so():
    """The flag of PyTorch's fused optimizers: with 0, all is as without it; with 1, nothing changes."""
    options = {"lr": 1e-2, "betas": (0.9, 0.99), "weight_decay": 0.1, "fused": True}
    network, other = Network(), Network()
    other.load_state_dict(network.state_dict())
    plain, flagged = Muon(network, **options), Muon(other, **options)
    flagged.found_inf = torch.zeros(())
    mine, theirs = steps_of(plain, network), steps_of(flagged, other)
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name])

    before = {name: parameter.detach().clone() for name, parameter in theirs.items()}
    moments = copy.deepcopy(flagged.state_dict()["state"])
    flagged.found_inf = torch.ones(())
    for parameter in other.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan) if parameter.requires_grad else None
    flagged.step()
    assert all(torch.equal(before[name], parameter) for name, parameter in other.named_parameters())
    for i, values in flagged.state_dict()["state"].items():
        assert all(torch.equal(moments[i][name], value) for name, value in values.items())


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch has Muon since 2.9")
def test_steps_are_those_of_pytorch():
    """PyTorch's Muon takes matrices only, and rounds them to bf16."""
    network = Network()
    matrices = [network.wide.weight.detach().flatten(1).clone(), network.shortcut.weight.detach().flatten(1).clone()]
    theirs = torch.optim.Muon(matrices, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    mine = Muon(network, lr=1e-2, weight_decay=0.1)
    for _ in range(5):
        for weight, matrix in zip((network.wide.weight, network.shortcut.weight), matrices):
            weight.grad = torch.randn_like(weight)
            matrix.grad = weight.grad.flatten(1)
        before = [matrix.clone() for matrix in matrices]
        mine.step()
        theirs.step()
    for weight, matrix, earlier in zip((network.wide.weight, network.shortcut.weight), matrices, before):
        length = (matrix - earlier).norm()
        assert (weight.flatten(1) - matrix).norm() < 0.05 * length  # five steps, rounded to three digits


def test_no_step_without_a_gradient():
    network = Network()
    before = {name: value.clone() for name, value in network.named_parameters()}
    Muon(network, lr=1e-2).step()
    assert all(torch.equal(value, before[name]) for name, value in network.named_parameters())
