"""Objects from dictionaries with `_target_`, for classes of this project and of torch.optim and nothing else."""

from __future__ import annotations

import importlib
from typing import Any

# In an export/: the class and the options with which this project loads it.
TECHNIQUE = "kexue.json"
ALLOWED = ("datamodules.", "lightning_modules.", "torch.optim.")


def build(node: Any, *args: Any, **extra: Any) -> Any:
    """The object that `node` describes: `{"_target_": "torch.optim.AdamW", "lr": 0.001}`.

    Options come as plain dictionaries because they are stored in checkpoints; only classes below `ALLOWED` are
    built, so a stranger's checkpoint cannot name code to run. What is not a dictionary is returned as it is.

    Raises:
        ValueError: `_target_` is missing, not allowed, not there, or not a class; or an option is unknown.
    """
    if not isinstance(node, dict):
        return node
    options = {key: value for key, value in node.items() if not key.startswith("_")}
    target = node.get("_target_")
    if not isinstance(target, str) or not target.startswith(ALLOWED):
        raise ValueError(f"_target_={target}: must be a class below {', '.join(ALLOWED)}")
    module, _, name = target.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"_target_={target}: not found ({error})") from error
    # What an allowed module has imported from elsewhere is not its own.
    if not isinstance(cls, type) or not f"{cls.__module__}.".startswith(ALLOWED):
        raise ValueError(f"_target_={target}: not a class of {', '.join(ALLOWED)}")
    try:
        return cls(*args, **options, **extra)
    except TypeError as error:
        raise ValueError(f"{target}: {error}") from error
