"""What is said once for all: of transformers and PEFT as they say it, and words that have a meaning."""

from __future__ import annotations

from typing import get_args

import peft
import torch
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME

from mobizo_kernels import conventions
from mobizo_kernels.choices import FREE_TASKS, LABELLED_TASKS, EstimatorName, Shaping
from mobizo_kernels.cli.task_settings import AUTOMATIC_DTYPE, Engine
from mobizo_kernels.data import ANSWER_TASKS, TASKS
from mobizo_kernels.ops.checks import DISTRIBUTIONS
from mobizo_kernels.reference.noise import _DISTRIBUTIONS
from mobizo_kernels.run_defaults import LrSchedule
from mobizo_kernels.training import schedule
from mobizo_kernels.zo import arguments, objective


def test_the_label_of_no_target() -> None:
    assert torch.nn.CrossEntropyLoss().ignore_index == conventions.IGNORED


def test_files_of_an_adapter() -> None:
    assert CONFIG_NAME == conventions.PEFT_CONFIG
    assert SAFETENSORS_WEIGHTS_NAME == conventions.PEFT_WEIGHTS


def test_defaults_of_what_scales_an_adapter() -> None:
    plain = peft.LoraConfig()
    assert {name: getattr(plain, name) for name in conventions.LORA_SCALING} == conventions.LORA_SCALING


def test_words_of_options_have_a_meaning() -> None:
    assert get_args(LrSchedule) == tuple(schedule._FACTORS)
    assert get_args(EstimatorName) == tuple(arguments._ESTIMATORS)
    assert tuple(_DISTRIBUTIONS) == DISTRIBUTIONS
    assert get_args(Engine) == tuple(AUTOMATIC_DTYPE)
    assert get_args(Shaping) == tuple(objective._SHAPINGS)


def test_named_tasks_are_there() -> None:
    assert (tuple(TASKS), tuple(ANSWER_TASKS)) == (LABELLED_TASKS, FREE_TASKS)
