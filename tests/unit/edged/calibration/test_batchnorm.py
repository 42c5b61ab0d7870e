from __future__ import annotations

import torch
from torch import nn
from torch.testing import assert_close

from edged.calibration.batchnorm import reestimate_batchnorm


def test_statistics_become_the_mean_over_batches():
    norm = nn.BatchNorm2d(3)
    norm(torch.randn(4, 3, 5, 5) * 9)  # earlier statistics, which must be discarded
    batches = [torch.randn(4, 3, 6, 6) + 5 * k for k in range(3)]
    assert reestimate_batchnorm(norm, batches)
    assert_close(norm.running_mean, torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0))
    assert_close(norm.running_var, torch.stack([b.var((0, 2, 3)) for b in batches]).mean(0))


def test_the_model_is_left_in_eval_mode():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, momentum=0.1), nn.Dropout())
    model.eval()
    reestimate_batchnorm(model, [torch.randn(2, 3, 4, 4)])
    assert model[1].momentum == 0.1
    assert not any(module.training for module in model.modules())


def test_a_model_without_batchnorm_is_not_modified():
    assert not reestimate_batchnorm(nn.Linear(2, 2), [torch.randn(1, 2)])
