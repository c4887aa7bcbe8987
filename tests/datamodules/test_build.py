"""Only classes of this project and of torch.optim come out of a dictionary."""

import pytest
import torch

from datamodules.build import build
from lightning_modules.schedules import WarmupDecay


def test_builds_classes_of_this_project_and_of_torch_optim():
    assert build({"_target_": "lightning_modules.schedules.WarmupDecay", "warmup": 0.3}).warmup == 0.3
    parameter = torch.nn.Parameter(torch.zeros(1))
    assert isinstance(build({"_target_": "torch.optim.SGD", "lr": 0.1}, [parameter]), torch.optim.SGD)


def test_an_object_is_returned_as_it_is():
    schedule = WarmupDecay()
    assert build(schedule, anything=1) is schedule and build(None) is None


@pytest.mark.parametrize(
    "node, message",
    [
        ({"_target_": "os.system", "command": "true"}, "must be a class below"),
        ({"_target_": "torch.load", "f": "x"}, "must be a class below"),
        ({"_target_": "torch.optim.adamw.torch.load", "f": "x"}, "not found"),
        ({"_target_": "datamodules.cache.cache_key"}, "not a class of"),
        ({"_target_": "datamodules.cache.tempfile.TemporaryDirectory"}, "not found"),
        ({"_target_": "datamodules.cache.Path"}, "not a class of"),
        ({"_target_": "datamodules.nothing.X"}, "not found"),
        ({"lr": 0.1}, "_target_=None"),
        ({"_target_": "torch.optim.SGD", "learning_rate": 1}, "learning_rate"),
    ],
)
def test_anything_else_is_refused(node, message):
    with pytest.raises(ValueError, match=message):
        build(node, *([[torch.nn.Parameter(torch.zeros(1))]] if "SGD" in str(node) else []))
