"""One run on several machines that send each other seeds and scalars only; docs/federated.md.

A coordinator has the journal and no model. Participants have the model and their own rows. What carries the
payloads between them, and knows nothing of what is in them, is in `mobizo_kernels.integrations`.
"""

from mobizo_kernels.rounds.coordinator import Coordinator, Round
from mobizo_kernels.rounds.exchange import Send, bring_up_to_date, run_round
from mobizo_kernels.rounds.participant import Participant
from mobizo_kernels.rounds.payloads import PayloadError

__all__ = ["Coordinator", "Participant", "PayloadError", "Round", "Send", "bring_up_to_date", "run_round"]
