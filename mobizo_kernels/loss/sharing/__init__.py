"""What is equal in every group of rows, computed once: the layers below the first adapter, and the tokens
before the invocation tokens of Activated LoRA (arXiv 2504.12397)."""

from mobizo_kernels.loss.sharing.decoder import SharedDecoder, TokenBlock
from mobizo_kernels.loss.sharing.states import BaseStates, RowStates, StateStore

__all__ = ["BaseStates", "RowStates", "SharedDecoder", "StateStore", "TokenBlock"]
