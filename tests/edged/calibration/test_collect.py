from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.testing import assert_close

from edged.calibration.collect import collect_grams


class TwoBranches(nn.Module):
    """Two 1x1 convolutions read the same tensor; a third reads another."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 1)
        self.right = nn.Conv2d(3, 4, 1)
        self.after = nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.after(torch.relu(self.left(x)) + self.right(x))
        return y


def test_layers_with_the_same_input_share_one_gram():
    torch.manual_seed(0)
    model = TwoBranches().eval()
    layers = {"left": model.left, "right": model.right, "after": model.after}
    batches = [torch.randn(2, 3, 5, 5), torch.randn(1, 3, 5, 5)]
    grams = collect_grams(model, layers, batches)
    assert grams["left"] is grams["right"]
    assert grams["left"] is not grams["after"]
    flat = torch.cat([batch.permute(0, 2, 3, 1).reshape(-1, 3) for batch in batches])
    assert grams["left"].positions == 75
    assert_close(grams["left"].matrix(), (flat.T @ flat)[None])


def test_a_layer_that_runs_twice_counts_both_inputs():
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    x = torch.randn(5, 3)
    gram = collect_grams(model, {"0": shared}, [x])["0"]
    second = torch.relu(shared(x)).detach()
    assert gram.positions == 10
    assert_close(gram.matrix(), (x.T @ x + second.T @ second)[None])


def test_no_hook_stays_behind():
    model = TwoBranches().eval()
    collect_grams(model, {"left": model.left}, [torch.randn(1, 3, 4, 4)])
    assert not any(module._forward_pre_hooks for module in model.modules())
