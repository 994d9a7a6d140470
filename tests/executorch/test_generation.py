"""What a program writes: the tokens of transformers and PEFT; what training changed is in the next one."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import peft
import pytest
import torch
from executorch.exir._serialize._program import deserialize_pte_binary
from programs import (
    CANDIDATES,
    MODELS,
    export_quietly,
    lora_b_of,
    lora_config,
    no_update,
    program_batch,
    tiny_llama,
    tiny_program,
    tiny_rows,
)

from mobizo_kernels import save_adapter, wrap
from mobizo_kernels.executorch import Trainer, _trainer, read_description
from mobizo_kernels.executorch.quantization import quantize
from mobizo_kernels.generation import Sampling
from mobizo_kernels.lora import adapt_head, adapter_layers
from mobizo_kernels.optim.seeds import query_seed

CONTEXT, CHUNK, STOP, INVOCATION = 40, 24, 2, [7, 8]
ACTIVATED = {"alora_invocation_tokens": INVOCATION, "task_type": "CAUSAL_LM"}
PROGRAMS: dict[str, dict[str, Any]] = {
    "candidates": {"layers": 2},
    "tied, activated": {
        "layers": 2,
        "kind": "tied",
        "candidate_tokens": None,
        "adapter": {**ACTIVATED, "layers_to_transform": [1]},
        "tail_length": 4,
    },
    "delegated, activated": {
        "kind": "qwen3",
        "lowering": "delegated",
        "distribution": "outer",
        "adapter": ACTIVATED,
        "tail_length": 4,
    },
}
QUANTIZED: dict[str, dict[str, Any]] = {
    "int8": {"kind": "tied", "candidate_tokens": None},
    "int8-dynamic": {"kind": "qwen2"},
    "int4": {"kind": "llama"},
}
# Of one token and two; of more than go in at once; with the invocation and without.
PROMPTS = [
    [9],
    [9, 7],
    [7, 8],
    [3, 4, 5, 6, 7, 8],
    [3, 4, 5, 6, 7, 8, 11, 12, 7],
    [11, 12, 13, 14],
    [int(token) for token in 9 + np.arange(CHUNK + 1)],
    [*(int(token) for token in 9 + np.arange(CHUNK + 4)), 7, 8, 30],
]


def writing_program(tmp_path_factory: pytest.TempPathFactory, **options: Any) -> Path:
    return tiny_program(tmp_path_factory, context=CONTEXT, **options)


@pytest.fixture
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return writing_program(tmp_path_factory, **PROGRAMS["candidates"])


def move(trainer: Trainer, seed: int) -> None:
    """An update of some size."""
    trainer.update(np.arange(2) + seed, np.float32([0.5, -0.4]))


def by_peft(trainer: Trainer, model: Any, prompt: list[int], count: int) -> list[int]:
    with TemporaryDirectory() as directory:
        trainer.save_peft(directory)
        tuned = peft.PeftModel.from_pretrained(model, directory).eval()
    ids = torch.tensor([prompt])
    found = tuned.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False,
        eos_token_id=STOP, pad_token_id=0,
    )  # fmt: skip
    return found[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", PROGRAMS)
def test_greedy_tokens_are_those_of_peft(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    options = PROGRAMS[name]
    trainer = Trainer(writing_program(tmp_path_factory, **options))
    answers = set()
    for step in range(2):  # no reload between
        move(trainer, step)
        for prompt in PROMPTS:
            result = trainer.generate(prompt, max_new_tokens=9)
            model = MODELS[options.get("kind", "llama")](options.get("layers", 1))
            assert list(result.tokens) == by_peft(trainer, model, prompt, 9)
            assert result.reused + result.prefilled == len(prompt)
            answers.add((*prompt, *result.tokens))
    assert len(answers) > len(PROMPTS) + 3  # what the update changed is heard


@pytest.mark.parametrize("name", ["candidates", "delegated, activated", "capped"])
def test_a_readout_is_heard_as_in_peft(
    name: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """It adds to the logits of the candidates, where the adapter acts, before they are scaled and capped."""
    options = {**PROGRAMS, "capped": {"kind": "gemma2"}}[name]
    trainer = Trainer(writing_program(tmp_path_factory, **options))
    build, layers = MODELS[options.get("kind", "llama")], options.get("layers", 1)
    rng = torch.Generator().manual_seed(3)
    answers = set()
    for size in (0.02, 0.2):
        model = wrap(build(layers), lora_config(**options.get("adapter", {})))
        directions, words = (torch.randn(shape, generator=rng) * size**0.5 for shape in ((2, 32), (2, 2)))
        adapt_head(model, torch.tensor(CANDIDATES), directions, words)
        save_adapter(model, tmp_path / "adapter")
        trainer.load_adapter(tmp_path / "adapter")
        for prompt in PROMPTS[2:6]:
            tokens = list(trainer.generate(prompt, max_new_tokens=9).tokens)
            assert tokens == by_peft(trainer, build(layers), prompt, 9)
            answers.add((*prompt, *tokens))
    assert len(answers) > 5 or name == "capped"  # what the readout changed is heard


@pytest.mark.parametrize("quantization", QUANTIZED)
def test_quantised_programs_write_what_their_model_would(
    quantization: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Each token is the likeliest to the eager quantised model, up to what rounding moves."""
    options = QUANTIZED[quantization]
    trainer = Trainer(writing_program(tmp_path_factory, quantization=quantization, **options))
    move(trainer, 0)
    model = MODELS[options["kind"]](1)
    wrap(model, lora_config())
    for layer, lora_b in zip(adapter_layers(model).values(), lora_b_of(trainer), strict=True):
        layer.lora_b.data.copy_(lora_b)
    quantize(model, quantization)
    for prompt in PROMPTS:
        tokens = list(trainer.generate(prompt, max_new_tokens=9).tokens)
        with torch.no_grad():
            logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
        slack = 0.0 if quantization == "int8" else 0.05 * logits.std()
        assert (chosen >= logits.max(dim=1).values - slack - 1e-4).all()


def test_a_conversation_goes_on_from_the_cache(program: Path) -> None:
    trainer = Trainer(program)
    move(trainer, 0)
    text, known = [5, 6, 9, 10], 0
    for turn in ([11, 12, 13], [14], [15, 16], []):
        text += turn
        result, fresh = trainer.generate(text, max_new_tokens=4), Trainer(program)
        move(fresh, 0)
        assert result.tokens == fresh.generate(text, max_new_tokens=4).tokens
        assert (result.reused, result.prefilled) == (known, len(text) - known)
        text += result.tokens
        known = len(text) - 1  # the last token was chosen, not computed
    move(trainer, 1)
    assert trainer.generate(text[:9], max_new_tokens=2).reused == 0


def test_training_goes_on_beside_it(program: Path, tmp_path: Path, rng: torch.Generator) -> None:
    """Steps are the same whether something was written between them or not."""
    writer, silent = Trainer(program), Trainer(program)
    batch = program_batch(tiny_rows(rng, (9, 4, 12)), writer.description)
    directions = np.arange(4), np.float32([0.1, 0.2, -0.1, -0.2])
    update = no_update(writer.description)
    for step in range(3):
        writer.generate([9, 10, 11, 12], max_new_tokens=5)
        losses, _ = writer.train_step(*batch, *directions, *update)
        expected, _ = silent.train_step(*batch, *directions, *update)
        assert (losses == expected).all()
        update = np.arange(2) + step, np.float32([0.3, -0.2])


def weights_in(program: Path) -> int:
    """Bytes of all constants, of delegates and of the program's own."""
    file = deserialize_pte_binary(program.read_bytes())
    assert file.named_data is not None
    constants = [buffer.storage for buffer in file.program.constant_buffer]
    return sum(map(len, [*constants, *file.named_data.buffers]))


def test_one_copy_of_the_weights(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The LM head apart, of which a program over candidates otherwise has their rows alone."""
    options = PROGRAMS["candidates"]
    without = weights_in(tiny_program(tmp_path_factory, **options))
    assert weights_in(writing_program(tmp_path_factory, **options)) == without + 61 * 32 * 4


def test_what_ends_an_answer(program: Path) -> None:
    trainer = Trainer(program)
    seen: list[int] = []
    whole = trainer.generate([9, 10, 11], max_new_tokens=30, on_token=seen.append)
    assert seen == list(whole.tokens)
    assert whole.ended == ("stop" if seen[-1] == STOP else "length")
    full = trainer.generate(PROMPTS[-1], max_new_tokens=30)
    assert full.ended in ("stop", "context")
    assert len(PROMPTS[-1]) + len(full.tokens) <= CONTEXT

    def stop(token: int) -> None:
        raise KeyError(token)

    with pytest.raises(KeyError):
        trainer.generate([9, 10, 11], on_token=stop)
    assert trainer.generate([9, 10, 11], max_new_tokens=30).tokens == whole.tokens


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([], {}, "the prompt must have at least one token"),
        ([9] * 40, {}, "the prompt has 40 tokens, and 39 fit: the program's context of 40 holds the answer,"),
        ([61], {}, "the prompt must have tokens from 0 to 60, got 61: is the tokenizer the program's?"),
        ([-1], {}, "the prompt must have tokens from 0 to 60, got -1"),
        ([9], {"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ([9], {"temperature": -1.0}, "temperature must be at least 0 and finite, got -1"),
        ([9], {"temperature": float("nan")}, "temperature must be at least 0 and finite, got nan"),
        ([9], {"top_k": -1}, "top_k must be at least 0, got -1"),
        ([9], {"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0"),
    ],
)  # fmt: skip
def test_refused(prompt: list[int], options: dict[str, Any], message: str, program: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Trainer(program).generate(prompt, **options)


def test_a_model_that_is_out_of_bounds_writes_nothing(program: Path) -> None:
    trainer = Trainer(program)
    trainer.update(np.arange(2), np.float32([np.nan, 0]))
    with pytest.raises(ValueError, match="the model gives logits that are no numbers"):
        trainer.generate([9, 10, 11])


def test_programs_without_a_context_do_not_write(tmp_path_factory: pytest.TempPathFactory) -> None:
    program = tiny_program(tmp_path_factory)
    assert read_description(program).generation is None
    with pytest.raises(ValueError, match="the program cannot write: it was exported without a context"):
        Trainer(program).generate([9])
    plans = deserialize_pte_binary(program.read_bytes()).program.execution_plan
    assert "next_logits" not in {plan.name for plan in plans}


@pytest.mark.parametrize(
    ("context", "message"),
    [(3, "context must be above 3, got 3"), (65, "context must be at most the model's 64 positions, got 65")],
)
def test_contexts_that_cannot_be(context: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        export_quietly(
            tiny_llama(1), tmp_path / "model.pte", targets=lora_config(), max_length=8, context=context
        )


def test_sampling_is_that_of_eager(rng: torch.Generator) -> None:
    options = [(0.0, 0, 1.0), (0.7, 0, 1.0), (1.3, 5, 1.0), (1.0, 0, 0.6), (0.9, 20, 0.8), (1.0, 1, 0.5)]
    for n, (temperature, top_k, top_p) in enumerate(options * 30):
        logits = 3 * torch.randn(200, generator=rng)
        logits[:20] = logits[0]  # equal ones, too
        uniform = (query_seed(5, n) % 2**64 >> 11) / 2**53
        sampling = Sampling(1, temperature, top_k, top_p)
        (wanted,) = sampling.choose(logits[None], torch.tensor([uniform], dtype=torch.float64)).tolist()
        assert _trainer.choose(logits.numpy(), temperature, top_k, top_p, 5, n) == wanted


def test_what_is_drawn_depends_on_the_seed_alone(program: Path) -> None:
    trainer = Trainer(program)
    drawn = {
        seed: [trainer.generate([9, 10], temperature=2.0, seed=seed).tokens for _ in range(2)]
        for seed in (0, 1, -7)
    }
    assert all(first == again for first, again in drawn.values())
    assert len({first for first, _ in drawn.values()}) == 3
