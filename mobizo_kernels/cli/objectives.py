"""What `--objective` names: cross-entropy, a reward of what the model writes, or the accuracy of labels."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path

from mobizo_kernels.cli.answers import AnswerTask
from mobizo_kernels.cli.settings import TrainSettings
from mobizo_kernels.errors import InputError, first_line
from mobizo_kernels.generation import Sampling, TextGenerator
from mobizo_kernels.loss import LabelledLoss
from mobizo_kernels.training.objectives import REWARDS, LabelError, Reward, TextReward

_CROSS_ENTROPY, _ACCURACY = "cross-entropy", "accuracy"


def learns_accuracy(settings: TrainSettings) -> bool:
    """Whether a run on labels minimises 1 minus their accuracy, not the cross-entropy.

    Raises:
        InputError: it is neither.
    """
    if settings.objective not in (_CROSS_ENTROPY, _ACCURACY):
        raise InputError(
            f"objective: expected {_CROSS_ENTROPY} or {_ACCURACY} with labels, got {settings.objective}"
        )
    return settings.objective == _ACCURACY


def label_objective(settings: TrainSettings, loss: LabelledLoss) -> LabelError | None:
    """The objective of a run on labels; None for the cross-entropy. Raises InputError if there is none."""
    return LabelError(loss) if learns_accuracy(settings) else None


def objective_name(settings: TrainSettings) -> str:
    """By which a journal tells it: a reward of one's own by what its file holds, wherever it lies."""
    path, colon, function = settings.objective.rpartition(":")
    if not colon:
        return settings.objective
    return f"{hashlib.blake2b(Path(path).read_bytes(), digest_size=8).hexdigest()}:{function}"


def text_reward(settings: TrainSettings) -> Reward | None:
    """The reward of a run on free answers; None for the cross-entropy.

    Raises:
        InputError: there is no such reward, file, or function in it.
    """
    name = settings.objective
    if name == _CROSS_ENTROPY:
        return None
    if name in REWARDS:
        return REWARDS[name]
    path, colon, function = name.rpartition(":")
    if not colon or not path.endswith(".py"):
        known = ", ".join([_CROSS_ENTROPY, *REWARDS])
        raise InputError(f"objective: expected {known} or FILE.py:FUNCTION with free answers, got {name}")
    if not Path(path).is_file():
        raise InputError(f"objective: there is no file {path!r}")
    spec = importlib.util.spec_from_file_location("mobizo_objective", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever is wrong with the file
        raise InputError(f"objective: {path} cannot be run ({first_line(error)})") from error
    reward = getattr(module, function, None)
    if not callable(reward):
        raise InputError(f"objective: {path} has no function {function!r}")
    found: Reward = reward
    return found


def text_objective(settings: TrainSettings, task: AnswerTask, reward: Reward | None) -> TextReward | None:
    """The objective of a run on free answers; None for the cross-entropy."""
    if reward is None:
        return None
    generator = TextGenerator(task.model, task.encoder.end_tokens)
    return TextReward(generator, task.tokenizer, reward, Sampling(settings.max_new_tokens))
