"""The native trainer from Python: one training program, loaded, with the adapter that it has now."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from mobizo_kernels.choices import Shaping
from mobizo_kernels.conventions import LORA_SCALING, PEFT_CONFIG, PEFT_WEIGHTS
from mobizo_kernels.executorch._library import load_trainer
from mobizo_kernels.executorch.description import Description, parse_description
from mobizo_kernels.executorch.methods import ProgramMethods
from mobizo_kernels.executorch.objectives import TextReward
from mobizo_kernels.executorch.reports import (
    EvaluationResult,
    GenerationResult,
    Readout,
    StepReport,
    TrainResult,
    Validation,
)
from mobizo_kernels.run_defaults import RUN

if TYPE_CHECKING:
    from mobizo_kernels.executorch import _trainer


class Trainer(ProgramMethods):
    """A training program in memory. It holds one adapter, which all methods read and change.

    Everything is done by ExecuTorch and the native loop; while a method is at work other threads of Python
    go on, but may not use this trainer.

    Args:
        program: the .pte that :func:`export_training_program` wrote.
        threads: CPU threads of ExecuTorch in this process, 0 for its own choice.

    Attributes:
        description: what the program was made for.

    Raises:
        ValueError: if the file is no training program or damaged, or `threads` differs from what a loaded
            program uses.
        OSError: if the file cannot be read.
    """

    def __init__(self, program: str | os.PathLike[str], *, threads: int = 0) -> None:
        self._native: _trainer.Trainer = load_trainer().Trainer(Path(program), threads)
        self.description = parse_description(self._native.description())

    def train(
        self,
        dataset: str | os.PathLike[str],
        *,
        steps: int = RUN.steps,
        eps: float = RUN.eps,
        lr: float = RUN.lr,
        lr_schedule: str = RUN.lr_schedule,
        normalize: bool = RUN.normalize,
        run_seed: int = RUN.run_seed,
        journal: str | os.PathLike[str] | None = None,
        sync_every: int = RUN.sync_every,
        resume: bool = RUN.resume,
        eval_every: int | None = None,
        validation_rows: int = RUN.validation_rows,
        keep: str = RUN.keep,
        stop_unsteady: bool = RUN.stop_unsteady,
        objective: TextReward | Literal["accuracy"] | None = None,
        reward_shaping: Shaping = "none",
        on_begin: Callable[[], object] | None = None,
        on_step: Callable[[StepReport], object] | None = None,
        on_evaluation: Callable[[Validation], object] | None = None,
    ) -> TrainResult:
        """Tune the adapter and leave the kept one in the program.

        Args:
            dataset: file of `mobizo tokenize`; docs/formats.md describes it.
            steps: in all; what the schedule spans.
            eps: size of a perturbation.
            lr: learning rate.
            lr_schedule: "constant", "linear" or "cosine"; the last two fall to 0.
            normalize: divide by the spread of the losses, not by eps.
            run_seed: of the directions, a signed 64-bit integer.
            journal: file that records each step. It begins with the adapter that the program has now.
            sync_every: steps between syncs of the journal to the disk.
            resume: go on with the journal if there is one, from the adapter with which it began.
            eval_every: steps between validations, a tenth of `steps` by default; 0 for none.
            validation_rows: most rows of the validation split to use.
            keep: "best" for the latest adapter that does not validate significantly worse than the best (see
                :class:`mobizo_kernels.training.Selection`) or, if the loss ran away, the best; or "last".
            stop_unsteady: end the run when its loss has run away, see
                :class:`mobizo_kernels.training.DivergenceGuard`.
            objective: what is minimised in place of the cross-entropy: a reward of what every group writes,
                or 1 minus the accuracy of the labels. The program has to be exported with a context. With a
                reward an adapter is kept by that of the validation rows, else by their cross-entropy.
            reward_shaping: "none"; "standardise" or "rank" for the losses by which the directions are
                weighed, as in :meth:`mobizo_kernels.ZerothOrder.step`.
            on_begin: called before the first step, when the journal is open, which no other run writes then.
                Like the next two it may not use this trainer.
            on_step: called after each step that is made, not after those applied from a journal.
            on_evaluation: called after each validation. What one of them raises ends the run; the adapter is
                then that of the last step made.

        Raises:
            ValueError: before the first step if an argument, the data set or the journal does not fit, or
                another run writes the journal; or in its course, with the adapter of the last step that was
                made, as a :class:`mobizo_kernels.training.objectives.RewardError` if a reward fails or is no
                finite number.
            OSError: if the data set cannot be read or the journal cannot be written; nothing that the journal
                has is lost.
            JournalLost: after the run, which ended early and left the kept adapter in the program, if the
                journal was removed, replaced or changed by another program; the result is its `result`.
        """
        if objective not in (None, "accuracy") and not isinstance(objective, TextReward):
            raise ValueError(f"objective must be a TextReward, 'accuracy' or None, got {objective!r}")
        written = objective if isinstance(objective, TextReward) else None
        result = self._native.train(
            Path(dataset),
            steps=steps,
            eps=eps,
            lr=lr,
            lr_schedule=lr_schedule,
            normalize=normalize,
            run_seed=run_seed,
            journal=None if journal is None else Path(journal),
            sync_every=sync_every,
            resume=resume,
            eval_every=eval_every,
            validation_rows=validation_rows,
            keep=keep,
            stop_unsteady=stop_unsteady,
            objective=objective.name if isinstance(objective, TextReward) else objective or "",
            reward=written.rewards if written else None,
            reward_shaping=reward_shaping,
            **(written.writing if written else {}),
            on_begin=on_begin,
            on_step=None if on_step is None else lambda report: on_step(StepReport(**report)),
            on_evaluation=None if on_evaluation is None else lambda v: on_evaluation(Validation(**v)),
        )
        lost = result.pop("lost")
        made = TrainResult(**{**result, "evaluations": [Validation(**v) for v in result["evaluations"]]})
        if lost:
            from mobizo_kernels.journal import JournalLost  # PEFT takes seconds to import

            error = JournalLost(lost)
            error.result = made
            raise error
        return made

    def tokenize(
        self,
        texts: str | os.PathLike[str],
        dataset: str | os.PathLike[str],
        *,
        tokenizer: str | os.PathLike[str],
        text_column: str = "text",
        label_column: str = "label",
        answers: str = "all",
        steps: int = RUN.steps,
        seed: int = RUN.run_seed,
        train_rows: int | None = None,
        validation_rows: int = RUN.validation_rows,
        test_rows: int = 600,
        max_length: int | None = None,
    ) -> None:
        """Write a data set for the program, whole or not at all, of texts: the file of `mobizo tokenize`, to
        the byte. The prompt or the chat template is the program's own.

        Args:
            texts: a file .csv or .jsonl of texts and labels, or .jsonl of conversations (docs/data.md).
            dataset: where the data set goes.
            tokenizer: the tokenizer.json that `mobizo export --tokenizer` wrote with the program.
            text_column: of labelled texts.
            label_column: of labelled texts.
            answers: of a conversation, "all" or the "last".
            steps: to lay out batches for; more start again.
            seed: of the batches; that of the run, `run_seed`, for the batches of `mobizo train`.
            train_rows: most rows of the training split, all by default.
            validation_rows: most rows of the validation split.
            test_rows: most rows of the test split.
            max_length: most tokens of a row, by default as many as the program takes.

        Raises:
            ValueError: before anything is written, naming the line where there is one, if the texts, the
                tokenizer or an argument does not fit the program.
            OSError: if a file cannot be read or written.
        """
        self._native.tokenize(
            Path(texts),
            Path(dataset),
            tokenizer=Path(tokenizer),
            text_column=text_column,
            label_column=label_column,
            answers=answers,
            steps=steps,
            seed=seed,
            train_rows=train_rows,
            validation_rows=validation_rows,
            eval_rows=test_rows,
            max_length=max_length,
        )

    def read_out(
        self,
        dataset: str | os.PathLike[str],
        *,
        rows: int = RUN.readout_rows,
        validation_rows: int = RUN.validation_rows,
    ) -> Readout:
        """Give the LM head a logistic regression on its inputs as :func:`mobizo_kernels.training.readout`
        does, an adapter of the rows of the candidate tokens, which runs hold.

        Args:
            dataset: file of `mobizo tokenize`.
            rows: most rows to make it of, by chance, one of each label in turn.
            validation_rows: most rows of the validation split to choose the ridge by.

        Raises:
            ValueError: before anything is changed, if the program cannot hold a readout or its head has an
                adapter, a label has no rows, a row has several targets, or a hidden state is not finite.
            OSError: if the data set cannot be read.
        """
        found = self._native.read_out(Path(dataset), rows, validation_rows)
        return Readout(**{**found, "losses": dict(found["losses"])})

    def evaluate(
        self,
        dataset: str | os.PathLike[str],
        *,
        split: str = "test",
        rows: int = 0,
        scores: bool = True,
    ) -> EvaluationResult:
        """Score the first `rows` rows, 0 for all, of "train", "validation" or "test".

        Args:
            dataset: file of `mobizo tokenize`.
            split: of the data set.
            rows: how many.
            scores: keep the logits of each row; over a vocabulary they take room.

        Raises:
            ValueError: if there is no such split, or the data set does not fit the program.
            OSError: if the data set cannot be read.
        """
        return EvaluationResult(**self._native.evaluate(Path(dataset), split, rows, scores))

    def replay(self, journal: str | os.PathLike[str], *, until: int | None = None) -> int:
        """Apply the records of a journal to the adapter with which it began, which the program must have now.

        Args:
            journal: of this package, whichever engine wrote it.
            until: number of steps, all by default.

        Returns:
            How many steps were applied.

        Raises:
            ValueError: before the adapter is touched, if the journal is damaged or of another program, or has
                fewer steps.
            OSError: if the journal cannot be read.
        """
        return self._native.replay(Path(journal), until)

    def adapter(self) -> dict[str, NDArray[np.float32]]:
        """A copy of every LoRA-A [r, in] and LoRA-B [out, r], float32, by their names in PEFT's files; those
        of the LM head last, if it has an adapter.
        """
        return self._native.adapter()

    def save_adapter(self, path: str | os.PathLike[str]) -> None:
        """Write the adapter to one .safetensors file, whole or not at all.

        Raises:
            ValueError: if `path` is the program's own file.
            OSError: if it cannot be written.
        """
        self._native.save_adapter(Path(path))

    def save_peft(self, directory: str | os.PathLike[str]) -> None:
        """Write the adapter as a PEFT directory, which `PeftModel.from_pretrained` loads.

        Raises:
            OSError: if `directory` is a file or cannot be written.
        """
        from mobizo_kernels.lora import peft_from_device  # PEFT takes seconds to import

        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch, PEFT_WEIGHTS)
            self.save_adapter(path)
            peft_from_device(path, directory)

    def load_adapter(self, path: str | os.PathLike[str]) -> None:
        """Begin again with an adapter: a file of :meth:`save_adapter` or a PEFT directory. What the optimizer
        keeps of earlier updates is forgotten.

        Its LoRA-A must be the program's, which only has the means to change B; but that of an LM head which a
        readout has given one.

        Raises:
            ValueError: before anything is changed, if it is of another model or does not fit.
            OSError: if it cannot be read.
        """
        path = Path(path)
        if path.is_dir():
            self._check_scaling(json.loads((path / PEFT_CONFIG).read_text()), path)
            path = path / PEFT_WEIGHTS
        self._native.load_adapter(path)

    def generate(
        self,
        prompt: Sequence[int],
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        on_token: Callable[[int], object] | None = None,
    ) -> GenerationResult:
        """What the model writes behind a prompt, with the adapter that the trainer has now.

        What a prompt has in common with the text that was last prompted and written is not computed again,
        unless the adapter has changed: a conversation that goes on costs its new turns.

        With invocation tokens (Activated LoRA) the adapters act from their last occurrence in the prompt on,
        and nowhere without one, as in PEFT. A readout adds to the logits of the candidate tokens there.

        Args:
            prompt: tokens.
            max_new_tokens: most tokens of the answer, the one that ends it included.
            temperature: divides the logits; 0 takes the likeliest token, whatever the rest says.
            top_k: sample from so many of the likeliest tokens; 0 for all.
            top_p: then from the fewest of the likeliest tokens that have this share of the probability.
            seed: of the random numbers: any 64-bit integer.
            on_token: called with each token as it is chosen; what it raises ends the call.

        Raises:
            ValueError: if the program was exported without a context, or by a version that could not write
                with a readout and the adapter has one, if the prompt is empty, longer than the
                context or has a token outside of the vocabulary, or if another argument is out of range.
        """
        found = self._native.generate(
            list(prompt),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            on_token=on_token,
        )
        return GenerationResult(**{**found, "tokens": tuple(found["tokens"])})

    def _check_scaling(self, config: Mapping[str, Any], path: Path) -> None:
        """Raise ValueError unless a PEFT configuration scales its adapter as the program does."""
        own, head = self.description.adapter.config, self.description.head
        for name, default in LORA_SCALING.items():
            expected, got = own.get(name, default), config.get(name, default)
            if head is not None and isinstance(default, dict):
                expected, got = (
                    {key: value for key, value in patterns.items() if key != head.pattern}
                    for patterns in (expected or {}, got or {})
                )
            if expected != got:
                raise ValueError(f"{path}: {name} must be {expected}, that of the program, got {got}")
        if head is not None and head.pattern in (ranks := config.get("rank_pattern") or {}):
            rank, alpha = ranks[head.pattern], (config.get("alpha_pattern") or {}).get(head.pattern)
            if alpha != (math.sqrt(rank) if config.get("use_rslora") else rank):
                raise ValueError(
                    f"{path}: alpha_pattern must give '{head.pattern}' a scaling of 1, got {alpha} for rank "
                    f"{rank}"
                )


def read_description(program: str | os.PathLike[str]) -> Description:
    """What a training program says of itself, its model not loaded.

    Raises:
        ValueError: if the file is no training program or damaged.
        OSError: if it cannot be read.
    """
    return parse_description(load_trainer().read_description(Path(program)))
