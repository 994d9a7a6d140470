"""What a program writes: the tokens of transformers and PEFT; what training changed is in the next one."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

import numpy as np
import peft
import pytest
import torch
from crash import start_runner
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
from tiny_texts import TEMPLATE, WORDS, save_chat_model, tokenizer
from tokenizers_of_kinds import saved
from transformers import AutoTokenizer

from mobizo_kernels import save_adapter, wrap
from mobizo_kernels.cli import main
from mobizo_kernels.cli.generate import generate
from mobizo_kernels.cli.writing_settings import GenerateSettings
from mobizo_kernels.data import ChatEncoder
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


def test_the_runner_refuses(program: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    _, path = saved("gpt2", tmp_path)
    silent = tiny_program(tmp_path_factory)
    for arguments, message in [
        ([program, "text"], "--tokenizer is needed"),
        ([program, "--tokenizer", path], "expected at least 2 arguments, got 1"),
        ([silent, "text", "--tokenizer", path], "the program cannot write"),
        ([program, "text", "--tokenizer", path], "the tokenizer has .* tokens, more than the 61 of the"),
        ([program, "text", "--tokenizer", path, "--top-p", "2"], r"top_p must be in \(0, 1\], got 2"),
    ]:
        process = start_runner(["generate", *arguments])
        _, errors = process.communicate()
        assert process.returncode == 2, errors
        assert re.search(message, errors) and errors.count("\n") == 1, errors


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny model with a chat template, and the program that the command line makes of it."""
    model = save_chat_model(tmp_path_factory.mktemp("chat") / "model")
    program = model.parent / "program.pte"
    options = {
        "model": model, "out": program, "context": 96, "max-length": 18, "queries": 1, "batch-size": 1,
        "targets": "v_proj", "layers": "1:1", "template": TEMPLATE, "verbalizer": json.dumps(WORDS),
    }  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        main.run(["export", *(f"--{name}={value}" for name, value in options.items())])
    assert not ended.value.code
    return model, program


def runner_answers(*arguments: str | Path, text: str = "") -> list[dict[str, Any]]:
    process = start_runner([*arguments, "--json", "--max-new-tokens", "12"], stdin=subprocess.PIPE)
    output, errors = process.communicate(text)
    assert process.returncode == 0, errors
    lines = output.splitlines()
    answers = json.loads(lines[-1])["answers"]
    assert output.startswith("".join(answer["text"] + "\n" for answer in answers))
    return answers


def test_the_runner_answers_as_mobizo_generate(chat_model: tuple[Path, Path]) -> None:
    model, program = chat_model
    asked = ["The film is dull, part 3. How?", "One long ending looks fine."]
    tokenizer = model / "tokenizer.json"
    for raw in (False, True):
        settings = GenerateSettings(
            prompts=asked, model=str(model), dtype="float32", max_new_tokens=12, raw=raw
        )
        expected = generate(settings)["tokens"]
        more = ["--raw"] if raw else []
        found = runner_answers("generate", program, *asked, "--tokenizer", tokenizer, *more)
        assert [answer["tokens"] for answer in found] == expected


def test_the_runner_keeps_a_conversation(chat_model: tuple[Path, Path]) -> None:
    model, program = chat_model
    lines = ["The film is dull.", "", "How?", "One long ending looks fine, part 2.", "Why?", "Who?"]
    arguments = ("chat", program, "--tokenizer", model / "tokenizer.json", "--system", "Be short.")
    found = runner_answers(*arguments, text="\n".join(lines))
    assert len(found) == 5
    assert any(answer["reused"] > 20 for answer in found)
    encoder, trainer = ChatEncoder(AutoTokenizer.from_pretrained(model)), Trainer(program)
    messages = [("system", "Be short.")]
    for line, answer in zip(filter(None, lines), found, strict=True):
        messages.append(("user", line))
        while len(prompt := encoder.prompt(messages)) >= 96:
            del messages[1:3]
        assert list(trainer.generate(prompt, max_new_tokens=12).tokens) == answer["tokens"]
        messages.append(("assistant", answer["text"]))


def talk(chat_model: tuple[Path, Path], content: bytes, *options: str) -> tuple[int, int, list[str]]:
    """Exit status of a chat, answers, and the lines of its errors."""
    model, program = chat_model
    known: list[str | Path] = ["--tokenizer", model / "tokenizer.json", "--json", "--max-new-tokens", "3"]
    with TemporaryFile() as questions:
        questions.write(content)
        questions.seek(0)
        process = start_runner(["chat", program, *known, *options], stdin=questions)
    output, errors = process.communicate()
    answers = json.loads(output.splitlines()[-1])["answers"] if output else []
    return process.returncode, len(answers), errors.splitlines()


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (b"\xff", "data: the prompt is not UTF-8 at byte 0 of a message of user"),
        (b"a\xe3", "data: the prompt is not UTF-8 at byte 1 of a message of user"),
        (b"\x80\x80", "data: the prompt is not UTF-8 at byte 0 of a message of user"),
        (b"Who<|end|>?", "data: the prompt holds the special token '<|end|>' in 'Who<|end|>?'"),
        (b"\xe2\x80\x8b" * 200, "and 95 fit: the program's context of 96 holds the answer, too"),
        (b"\xc2\xa0\xe2\x80\xa8", None),  # white space: nothing is asked
    ],
)
def test_a_line_that_cannot_be_asked_ends_no_chat(
    line: bytes, sentence: str | None, chat_model: tuple[Path, Path]
) -> None:
    """Nor is anything forgotten for its sake."""
    status, answers, errors = talk(chat_model, b"How?\n" + line + b"\nWhy?")
    assert (status, answers) == (0, 2)
    told = [error for error in errors if "invocation tokens" not in error]
    assert len(told) == (0 if sentence is None else 1)
    assert sentence is None or sentence in told[0]


def test_a_system_message_is_refused_before_anything_is_asked(chat_model: tuple[Path, Path]) -> None:
    for system, sentence in (("<|end|>", "holds the special token"), ("a b " * 99, "and 95 fit")):
        status, answers, errors = talk(chat_model, b"", "--system", system)
        assert (status, answers, len(errors)) == (2, 0, 1)
        assert sentence in errors[0]


def test_chat_says_that_the_adapter_is_off(chat_model: tuple[Path, Path]) -> None:
    status, answers, errors = talk(chat_model, b"How?\nWhy?\n")
    assert (status, answers) == (0, 2)
    assert errors == ["mobizo_runner: the prompt lacks the adapter's invocation tokens: it is off there"]


@pytest.mark.parametrize("text", [b"\xff", b"\xe3", b"\x80\x80", b"<|end|>\xf0"])
def test_prompts_that_are_not_utf8(text: bytes, chat_model: tuple[Path, Path]) -> None:
    model, program = chat_model
    process = start_runner(["generate", program, "--tokenizer", model / "tokenizer.json", os.fsdecode(text)])
    _, errors = process.communicate()
    assert process.returncode == 2 and "the prompt is not UTF-8 at byte" in errors


def test_answers_that_cannot_be_written(chat_model: tuple[Path, Path]) -> None:
    model, program = chat_model
    with open("/dev/full", "w") as full:
        process = start_runner(
            ["generate", program, "a", "b", "--tokenizer", model / "tokenizer.json"], stdout=full
        )
        _, errors = process.communicate()
    assert process.returncode == 1
    assert errors.splitlines()[-1] == "mobizo_runner: cannot write the output: No space left on device"


def test_a_standard_stream_that_is_closed(chat_model: tuple[Path, Path]) -> None:
    """No file that is opened later is read, or written to, in its place."""
    model, program = chat_model
    arguments: list[str | Path] = [program, "--tokenizer", model / "tokenizer.json"]
    cases: list[tuple[str, list[str | Path], str]] = [
        ("<&-", ["chat", *arguments], "cannot read the standard input"),
        (">&-", ["generate", *arguments, "a"], "cannot write the output"),
    ]
    for closed, command, sentence in cases:
        process = start_runner(command, shell=f'exec "$@" {closed}')
        _, errors = process.communicate()
        assert process.returncode == 1
        assert errors.splitlines()[-1] == f"mobizo_runner: {sentence}: Bad file descriptor"


def test_another_tokenizer_is_refused(chat_model: tuple[Path, Path], tmp_path: Path) -> None:
    _, program = chat_model
    tokenizer().save_pretrained(tmp_path)
    process = start_runner(["generate", program, "text", "--tokenizer", tmp_path / "tokenizer.json"])
    _, errors = process.communicate()
    assert process.returncode == 2
    assert "tokenizer.json: not the tokenizer of the program, whose fingerprint is " in errors
