"""Programs that are damaged, and programs that lie about themselves: refused by name, and never a crash.

Behind the checksum stand the trainer's own checks of what a program says of itself, so they are tested with
the checksum mended. What ExecuTorch makes of a program is its own affair.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from crash import start_runner
from executorch.exir._serialize._program import deserialize_pte_binary, serialize_pte_binary
from executorch.runtime import Runtime, Verification
from journals import ADAM, BAD_RULES
from programs import (
    MAGIC,
    described,
    description_in,
    entries,
    program_bytes,
    tiny_dataset,
    with_checksum,
)

from mobizo_kernels.executorch import Trainer, read_description
from mobizo_kernels.executorch.description import parse_description

DAMAGED = "damaged: its checksum is [0-9a-f]{8}, that of its bytes [0-9a-f]{8}"
NO_CHECKSUM = "not a training program, or cut short: it does not end with a checksum"
GIGABYTE = 2**30


def mutated(content: bytes, seed: int) -> bytes:
    """The bytes with one of them, a word, a block or the end changed."""
    rng = random.Random(seed)
    at, spoiled = rng.randrange(len(content)), bytearray(content)
    size = (1, 4, 64, 512)[seed % 4]
    match seed % 5:
        case 0:
            del spoiled[at:]
        case 1:
            spoiled[at : at + size] = bytes(len(spoiled[at : at + size]))
        case 2:
            other = rng.randrange(len(content))
            spoiled[at : at + size] = content[other : other + len(spoiled[at : at + size])]
        case _:
            spoiled[at] ^= 1 << rng.randrange(8)
            spoiled[at + 1 : at + size] = rng.randbytes(len(spoiled[at + 1 : at + size]))
    return bytes(spoiled)


def test_the_checksum(program: Path) -> None:
    content = program.read_bytes()
    assert content == with_checksum(program_bytes(program))


def test_every_kind_of_damage_is_refused(program: Path, tmp_path: Path) -> None:
    """Anywhere in the file, its own trailer included."""
    whole, path = program.read_bytes(), tmp_path / "model.pte"
    spoiled = {mutated(whole, seed) for seed in range(200)} - {whole}
    spoiled |= {whole[:size] for size in (0, 1, 11, 12, len(whole) - 12, len(whole) - 1)}
    spoiled |= {whole[:-12] + mutated(whole[-12:], seed) for seed in range(20)} - {whole}
    spoiled |= {whole + b"\0", whole + whole, program_bytes(program)}
    assert len(spoiled) > 150
    for content in spoiled:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"model.pte: .*({DAMAGED}|{NO_CHECKSUM})"):
            read_description(path)
    with pytest.raises(ValueError, match=f"model.pte: .*({DAMAGED}|{NO_CHECKSUM})"):
        Trainer(path)


def test_files_that_are_no_programs(tmp_path: Path, rng: torch.Generator) -> None:
    dataset = tiny_dataset(tmp_path / "data.safetensors", rng)
    with pytest.raises(ValueError, match=f"data.safetensors: {NO_CHECKSUM}"):
        Trainer(dataset)
    dataset.write_bytes(with_checksum(dataset.read_bytes()))
    with pytest.raises(ValueError, match="data.safetensors: not a program of ExecuTorch: "):
        Trainer(dataset)
    with pytest.raises(OSError, match="no_such.pte"):
        Trainer(tmp_path / "no_such.pte")
    with pytest.raises((ValueError, OSError), match=tmp_path.name):
        Trainer(tmp_path)
    nameless = Path(os.fsdecode(bytes(tmp_path) + b"/\xff.pte"))  # in no encoding
    with pytest.raises(OSError, match="\udcff.pte"):
        Trainer(nameless)
    nameless.write_bytes(b"")
    with pytest.raises(ValueError, match=f"\udcff.pte: {NO_CHECKSUM}"):
        Trainer(nameless)


def parameter(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda description: description["adapter"]["parameters"][0].update(values)


def head(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda description: description["head"].update(values)


def generation(**values: Any) -> Callable[[dict[str, Any]], None]:
    whole = {"context": 9, "chunk": 3, "stop_tokens": [2], **values}
    return entries(generation={name: value for name, value in whole.items() if value != "absent"})


def twice(description: dict[str, Any]) -> None:
    first, second = description["adapter"]["parameters"]
    second["name"] = first["name"]


HUGE = 2**31 - 1


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (entries(format=3), "description: expected a program of format 1 or 2, got 3"),
        (entries(format=2), "description: '(lowering|inputs)' is missing"),
        (entries(groups=5), "description: groups must be 4 for 2 queries two_sided, got 5"),
        (entries(estimator="three"), "description: estimator must be one of .*, centred, got 'three'"),
        (entries(estimator="\x1b[31m\n\x7f"), r"description: estimator must be .*, got '\?\[31m\?\?'"),
        (entries(batch_size=0), "description: batch_size: expected at least 1, got 0"),
        (entries(batch_size=2**62), "description: batch_size: expected at most 2147483647, got 46116860"),
        (entries(queries=2**62, groups=1), "description: queries: expected at most 2147483647"),
        (entries(pad_token=61), "description: pad_token must be below 61, got 61"),
        (parameter(lora_b=[2**62, 4]), "description: adapter: .*q_proj.weight: lora_b: expected at most"),
        (twice, "description: the adapter has two parameters called .*q_proj.weight"),
        (entries(color="red"), "description: 'color' is unknown"),
        (entries(**{"": 1}), "description: '' is unknown"),
        (lambda description: description.pop("vocabulary"), "description: 'vocabulary' is missing"),
        (lambda description: description.pop("format"), "description: 'format' is missing"),
        (entries(versions={"torch": 2}), "description: versions: torch: expected a string, got a whole"),
        (entries(dynamic_length=1), "description: dynamic_length: expected a boolean, got a whole number"),
        (entries(tokenizer=[]), "description: tokenizer: expected a string, got a list"),
        (entries(max_length=2), "description: max_length must be at least 3, got 2"),
        (entries(candidate_tokens=[5]), "description: candidate_tokens must be at least 2"),
        (entries(tail_length=2), "description: invocation_tokens and tail_length must be both given, or"),
        (entries(invocation_tokens=[7]), "description: invocation_tokens and tail_length must be both given"),
        (entries(invocation_tokens=[], tail_length=1), "description: invocation_tokens must be at least 1"),
        (entries(invocation_tokens=[7, 8], tail_length=1), "description: tail_length must be from 2 to 23"),
        (entries(model=None), "description: model: expected an object, got null"),
        (entries(adapter={"config": {}, "parameters": []}), "description: the adapter has no parameters"),
        (parameter(name=5), "description: adapter: parameters: name: expected a string, got a whole number"),
        (parameter(stream=0.5), "description: adapter: .*q_proj.weight: stream: expected a whole number"),
        (parameter(scaling="2"), "description: adapter: .*q_proj.weight: scaling: expected a number, got a"),
        (parameter(lora_a=[4]), r"description: adapter: .*: lora_a: expected two sizes, got \[4\]"),
        (parameter(lora_a=[3, 16]), "description: adapter: .*: lora_a and lora_b are of different rank"),
        (parameter(rank=4), "description: adapter: .*q_proj.weight: 'rank' is unknown"),
        (
            entries(batch_size=10**9),
            r"method train_step: input 0 must be Long of shape \(1000000000, 24\) by the description, got "
            r"Long of shape \(3, 24\)",
        ),
        (entries(batch_size=2), r"method train_step: input 0 must be Long of shape \(2, 24\)"),
        (entries(max_length=25), r"method train_step: input 0 must be Long of shape \(3, 25\)"),
        (entries(targets_per_row=2), r"method train_step: input 2 must be Long of shape \(3, 2\)"),
        (entries(groups=3, estimator="centred"), "description: groups must be 2 for 2 .* centred, got 3"),
        (entries(queries=4, estimator="centred"), "method train_step: input 6 must be Long of shape .4,."),
        (entries(queries=3, estimator="one_sided"), "method train_step: input 6 must be Long of shape .3,."),
        (entries(evaluation_rows=10**9), "method evaluate: input 0 must be Long of shape .1000000000, 24."),
        (entries(candidate_tokens=[5, 9, 11]), "method train_step: input 8 must be Float of shape .3, 32."),
        (entries(candidate_tokens=None), "description: head needs candidate_tokens"),
        (entries(candidate_tokens=[5, 61]), "description: candidate_tokens must be from 0 to 60, the rows"),
        (entries(head=[]), "description: head: expected an object, got a list"),
        (head(shape=[61]), r"description: head: shape: expected two sizes, got \[61\]"),
        (head(shape=[61, 0]), "description: head: shape: expected at least 1, got 0"),
        (head(shape=[61, 16]), "method train_step: input 8 must be Float of shape .2, 16. by"),
        (head(soft_cap=0), "description: head: soft_cap: expected a positive number, got 0"),
        (head(soft_cap=-1.5), "description: head: soft_cap: expected a positive number, got -1.5"),
        (head(scale=None), "description: head: scale: expected a number, got null"),
        (head(rank=3), "description: head: rank must be at most 2, got 3"),
        (head(rank=-1), "description: head: rank: expected at least 0, got -1"),
        (head(rank=1), "method get_adapter must have 0 inputs and 6 outputs, got 0 and 4"),
        (head(target_modules=[5]), "description: head: target_modules: expected a string, got a whole"),
        (head(target_modules=None), "description: head: target_modules: expected a list, got null"),
        (head(bias=1), "description: head: 'bias' is unknown"),
        (entries(generation=None), "description: generation: expected an object, got null"),
        (generation(chunk=2), "description: generation: chunk: expected at least 3, got 2"),
        (generation(chunk=10), "description: generation: chunk must be at most 9, the context, got 10"),
        (generation(context=2**31), "description: generation: context: expected at most 2147483647, got"),
        (generation(context=9.5), "description: generation: context: expected a whole number, got a num"),
        (generation(stop_tokens=[61]), "description: generation: stop_tokens must be from 0 to 60, got 61"),
        (generation(stop_tokens=[-1]), "description: generation: stop_tokens must be from 0 to 60, got -1"),
        (generation(stop_tokens="</s>"), "description: generation: stop_tokens: expected a list, got a str"),
        (generation(stop_tokens="absent"), "description: generation: 'stop_tokens' is missing"),
        (generation(more=1), "description: generation: 'more' is unknown"),
        (generation(), "method next_logits"),
        (lambda description: description.pop("head"), "method train_step must have 8 inputs and 2 outputs"),
        (entries(optimizer=ADAM), "method train_step must have 7 inputs and 1 outputs, got 9 and 2"),
        (parameter(lora_b=[16, 4]), r"method get_adapter: output 2 must be Float of shape \(16, 4\)"),
        (parameter(lora_a=[HUGE, HUGE], lora_b=[HUGE, HUGE]), "method get_adapter: output 0 must be Float"),
        (
            lambda description: description["adapter"]["parameters"].pop(),
            "method get_adapter must have 0 inputs and 2 outputs, got 0 and 4",
        ),
    ],
)  # fmt: skip
def test_a_description_of_another_program(edit: Any, message: str, program: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pte"
    path.write_bytes(described(program, edit))
    with pytest.raises(ValueError, match=f"model.pte: {message}") as native:
        Trainer(path)
    text = description_in(program_bytes(path))
    if message.startswith("method"):
        parse_description(text)
        return
    with pytest.raises(ValueError) as here:
        parse_description(text)
    sentence = re.sub(r"[\x00-\x1f\x7f]", "?", str(here.value))
    assert str(native.value) == f"{path}: description: {sentence}"


@pytest.mark.parametrize(("values", "sentence"), [*BAD_RULES, (None, "expected an object, got null")])
def test_an_optimizer_that_is_none(
    values: dict[str, Any] | None, sentence: str, program: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.pte"
    path.write_bytes(described(program, entries(optimizer=values)))
    with pytest.raises(ValueError) as native:
        Trainer(path)
    with pytest.raises(ValueError) as here:
        parse_description(description_in(program_bytes(path)))
    assert str(here.value) == f"optimizer: {sentence}"
    assert str(native.value) == f"{path}: description: optimizer: {sentence}"


def test_descriptions_changed_anywhere(program: Path, tmp_path: Path, rng: torch.Generator) -> None:
    """The runner uses the program or refuses it, in little memory: nothing else ends it."""
    content = program_bytes(program)
    start = content.index(b'{"format": 1')
    end = content.index(b"\0", start)
    dataset, path = tiny_dataset(tmp_path / "data.safetensors", rng), tmp_path / "model.pte"
    refused = 0
    for seed in range(60):
        text = mutated(content[start:end], seed)[: end - start].ljust(end - start)
        path.write_bytes(with_checksum(content[:start] + text + content[end:]))
        command = ["evaluate", path, dataset, "--rows", "1", "--threads", "1"]
        process = start_runner(command)
        resource.prlimit(process.pid, resource.RLIMIT_AS, (4 * GIGABYTE, 4 * GIGABYTE))
        _, errors = process.communicate(timeout=60)
        assert process.returncode in (0, 2), errors
        if process.returncode == 2:
            refused += 1
            assert errors.startswith("mobizo_runner: ") and errors.count("\n") == 1
            assert "model.pte" in errors or "data.safetensors" in errors
    assert refused > 20


def test_stock_executorch_takes_no_notice_of_the_checksum(program: Path) -> None:
    assert program.read_bytes()[-12:-4] == MAGIC
    for source in (program, program.read_bytes()):
        loaded = Runtime.get().load_program(source, verification=Verification.InternalConsistency)
        method = loaded.load_method("mobizo_description")
        assert method is not None
        assert json.loads(method.execute([])[0])["format"] == 1


def test_more_memory_than_the_machine_has(program: Path, tmp_path: Path) -> None:
    file, path = deserialize_pte_binary(program_bytes(program)), tmp_path / "model.pte"
    plan = next(plan for plan in file.program.execution_plan if plan.name == "evaluate")
    plan.non_const_buffer_sizes[1] = 2**50
    path.write_bytes(with_checksum(bytes(serialize_pte_binary(file))))
    with pytest.raises(ValueError, match="model.pte: method evaluate needs 1.12.* GB of memory, but"):
        Trainer(path)
