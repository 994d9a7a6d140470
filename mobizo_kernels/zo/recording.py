"""The journal of a run: what its header says, the file, and the steps in it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from torch import nn

from mobizo_kernels.journal import JournalWriter
from mobizo_kernels.journal.header import JournalHeader, PathLike
from mobizo_kernels.journal.replay import model_fields
from mobizo_kernels.loss import LabelledLoss
from mobizo_kernels.optim.base import ZOOptimizer
from mobizo_kernels.optim.records import Records
from mobizo_kernels.optim.seeds import signed_seed
from mobizo_kernels.zo.estimators import Estimator
from mobizo_kernels.zo.parameters import Holders
from mobizo_kernels.zo.team import Team
from mobizo_kernels.zo.trials import is_batched


class Recorded:
    """The part of :class:`mobizo_kernels.ZerothOrder` that is about its journal and the steps in it."""

    model: nn.Module
    estimator: Estimator
    optimizer: ZOOptimizer
    loss: LabelledLoss
    run_seed: int
    distribution: str
    steps: int
    skipped_steps: int
    journal: JournalWriter | None
    _team: Team
    _holders: Holders

    @property
    def _captured(self) -> bool:
        """Whether a CUDA graph holds the whole step."""
        raise NotImplementedError

    def open_journal(
        self,
        path: PathLike,
        *,
        resume: bool = False,
        lr_schedule: str | None = None,
        steps: int | None = None,
        batch_size: int | None = None,
        data: str | None = None,
    ) -> Records:
        """Record every step from now on in `path`, before it is applied: replaying the file gives this run's
        adapter bit for bit (:func:`mobizo_kernels.journal.replay`), and a run that was cut off can go on from
        it.

        Args:
            path: of the journal; must not exist unless `resume`.
            resume: go on with `path` if it exists; a torn last record is cut off.
            lr_schedule: as the caller drives :attr:`optimizer`, for the header, like the next three.
            steps: planned.
            batch_size: rows in each step.
            data: a hash of the training rows.

        Returns:
            The steps recorded so far, on all ranks. They are yet to be applied by :meth:`apply`, at once or
            with evaluations in between. Rank 0 alone opens the file; :attr:`journal` is None on the others.

        Raises:
            ValueError: naming the argument, if the parameters of an unwrapped model are tuned (a replay would
                not give the same bits), if the optimizer has several groups of parameters (the journal has
                one learning rate), if cuda_graph is True, if steps were made already, or if the journal is
                damaged or its header differs from this run's; it names the field then.
            OSError: if the journal exists without `resume`, is held by another run, or cannot be read or
                written.
        """
        self._check_recordable()

        def first() -> Records:
            header = self.journal_header(
                lr_schedule=lr_schedule, steps=steps, batch_size=batch_size, data=data
            )
            if resume:
                with suppress(FileNotFoundError):
                    self.journal, recorded = JournalWriter.resume(path, header)
                    return recorded
            self.journal = JournalWriter.create(path, header)
            return Records.none(header.queries)

        found = self._team.from_first(first, "open_journal")
        self._team.records = True
        return found

    def journal_header(
        self,
        *,
        lr_schedule: str | None = None,
        steps: int | None = None,
        batch_size: int | None = None,
        data: str | None = None,
    ) -> JournalHeader:
        """All that decides on the outcome of this run, of which no step was made yet, as its journal has it.

        Args:
            lr_schedule: as of :meth:`open_journal`, like the next three.
            steps: planned.
            batch_size: rows in each step.
            data: a hash of the training rows.

        Raises:
            ValueError: as :meth:`open_journal`, for a run that has none.
        """
        self._check_recordable()
        candidates = self.loss.candidates
        return JournalHeader(
            **self.estimator.as_json(),
            run_seed=signed_seed(self.run_seed),
            lr_schedule=lr_schedule,
            steps=steps,
            distribution=self.distribution,
            optimizer=self.optimizer.rule,
            batch_size=batch_size,
            data=data,
            candidate_tokens=() if candidates is None else tuple(candidates.tolist()),
            **model_fields(self.model),
        )

    def sync_journal(self) -> None:
        """Bring the journal to the disk, if there is one. Raises JournalLost, on all ranks, as :meth:`step`;
        OSError if the disk fails, and RankFailed on the other ranks.
        """
        self._on_journal(JournalWriter.sync, f"sync_journal() at step {self.steps}")

    def close_journal(self) -> None:
        """Let the journal go, if there is one; steps are not recorded from now on."""
        journal, self.journal, self._team.records = self.journal, None, False
        if journal is not None:
            journal.close()

    def _on_journal(self, act: Callable[[JournalWriter], object], when: str) -> None:
        journal = self.journal  # of rank 0; no rank goes on before
        self._team.confirm(lambda: journal and act(journal), when)

    def apply(self, records: Records) -> None:
        """Apply recorded steps, without any forward; plain SGD takes all of them in one pass.

        Args:
            records: of the next steps, as :meth:`open_journal` returns them, or of another machine of the
                same run. Those that the journal does not have yet are recorded in it first.

        Raises:
            ValueError: if the records are not of q coefficients, or a parameter is another tensor than when
                this was made. Nothing was applied, as with the next.
            OSError: if the journal cannot be written.
        """
        queries, given = self.estimator.queries, list(records.coeffs.shape[1:])
        if given != [queries]:
            raise ValueError(f"records must have {queries} coefficients, got {given}")
        self._holders.check()
        if self.journal is not None:
            for step, record in enumerate(records, self.steps):
                if step >= self.journal.steps:
                    self.journal.append(step, record)
        self.optimizer.apply_steps(self.run_seed, self.steps, records)
        self.steps += len(records)
        self.skipped_steps += int((~records.applied).sum())

    def _check_recordable(self) -> None:
        """Raise ValueError for a run of which a journal would not give the same bits again."""
        if self._captured:
            raise ValueError(
                "journal needs cuda_graph=False, got True: a step has to be on the disk before it is applied"
            )
        if not is_batched(self.model):
            raise ValueError("journal needs a model wrapped by mobizo_kernels.wrap or wrap_parameters")
        if len(self.optimizer.param_groups) != 1:
            raise ValueError(f"journal needs one group of parameters, got {len(self.optimizer.param_groups)}")
        if self.steps:
            raise ValueError(f"journal must be opened before the first step, got one after step {self.steps}")
