import torch
from torch import nn

from lada_kernels.training.ema import make_ema, update_ema


def test_parameters_and_buffers_are_averaged_and_counters_copied():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).double()
    ema = make_ema(model)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(3):
        model(torch.randn(2, 3, 5, 5).double())
        with torch.no_grad():
            model[0].weight.add_(1)
        update_ema(ema, model, 0.9)
        for name, value in model.state_dict().items():
            exact = not value.is_floating_point()
            expected[name] = value.clone() if exact else 0.9 * expected[name] + 0.1 * value
    assert ema[1].num_batches_tracked == 3
    torch.testing.assert_close(dict(ema.state_dict()), expected, rtol=1e-12, atol=1e-14)


def test_average_is_frozen_and_in_eval_mode_and_leaves_the_model_alone():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = make_ema(model)
    assert not ema.training
    assert model.training
    assert not any(p.requires_grad for p in ema.parameters())
    assert all(p.requires_grad for p in model.parameters())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    update_ema(ema, model, 0.5)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
