"""What a user can set where a model writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from mobizo_kernels.choices import SMOLLM2, Dtype, Quantization
from mobizo_kernels.cli.task_settings import AUTOMATIC_DTYPE, MAX_THREADS, check_numbers


@dataclass(frozen=True, kw_only=True)
class ChatSettings:
    """What `mobizo chat` can be told."""

    model: Annotated[str, Option(help=f"{SMOLLM2}, a directory, or a name on the hub.")] = SMOLLM2
    adapter: Annotated[Path | None, Option(help="Directory of a PEFT adapter of the model.")] = None
    quantization: Annotated[Quantization, Option(help="Of the base model, as it was tuned over.")] = "none"
    dtype: Annotated[
        Literal["auto", Dtype], Option(help="Type of the base model's weights; auto is bfloat16.")
    ] = "auto"
    system: Annotated[str, Option(help="What the system says before.", show_default="nothing")] = ""
    max_new_tokens: Annotated[int, Option(min=1, help="Most tokens of an answer.")] = 128
    temperature: Annotated[float, Option(min=0, help="0 takes the likeliest token each time.")] = 0.0
    top_k: Annotated[int, Option(min=0, help="Sample from so many tokens; 0 for all.")] = 0
    top_p: Annotated[float, Option(help="Then from the fewest that have this probability together.")] = 1.0
    seed: Annotated[int, Option(help="Of what is sampled.")] = 0
    threads: Annotated[
        int | None, Option(min=1, max=MAX_THREADS, help="CPU threads.", show_default="torch's choice")
    ] = None

    def __post_init__(self) -> None:
        check_numbers(self)

    @property
    def weights(self) -> str:
        """The type that `dtype` stands for."""
        return AUTOMATIC_DTYPE["eager"] if self.dtype == "auto" else self.dtype


@dataclass(frozen=True, kw_only=True)
class GenerateSettings(ChatSettings):
    """What `mobizo generate` can be told."""

    prompts: Annotated[list[str], Argument(metavar="PROMPT...", help="What the user says, or raw text.")]
    raw: Annotated[bool, Option("--raw", help="Go on with the prompts as they are, without a template.")] = (
        False
    )
