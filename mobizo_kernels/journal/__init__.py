"""The journal of a run, one record for each step, and the replay that rebuilds the adapter from it."""

from mobizo_kernels.journal.file import JournalLost
from mobizo_kernels.journal.header import JournalHeader, JournalParameter
from mobizo_kernels.journal.journal import JournalWriter, read_journal
from mobizo_kernels.journal.replay import replay, tuned_adapters

__all__ = [
    "JournalHeader",
    "JournalLost",
    "JournalParameter",
    "JournalWriter",
    "read_journal",
    "replay",
    "tuned_adapters",
]
