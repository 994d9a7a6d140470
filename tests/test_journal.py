"""The journal: read by a parser of its own, replayed to the bit, cut at every byte, damaged, and resumed."""

from __future__ import annotations

import copy
import dataclasses
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from helpers import DISTRIBUTIONS, assert_same_bits, full_disk
from peft import LoraConfig
from transformers import PreTrainedModel

from mobizo_kernels import reference
from mobizo_kernels.lora import adapter_layers, model_fingerprint, wrap
from mobizo_kernels.ops import parameter_stream
from mobizo_kernels.zo import (
    JournalHeader,
    JournalWriter,
    ZerothOrder,
    query_seeds,
    read_journal,
    replay,
    tuned_adapters,
)

QUERIES = 3
RECORD = 12 + 4 * QUERIES
OPTIONS: dict[str, Any] = {"queries": QUERIES, "eps": 0.05, "lr": 0.02, "run_seed": 2**63 + 11}


def wrapped(**options: Any) -> PreTrainedModel:
    return wrap(
        tiny.llama(), LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "down_proj"], **options)
    )


def adapters(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: layer.lora_b.detach().clone() for name, layer in adapter_layers(model).items()}


def assert_same_adapters(model: PreTrainedModel, expected: dict[str, torch.Tensor]) -> None:
    actual = adapters(model)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert_same_bits(actual[name], value)


def train(
    path: Path, rng: torch.Generator, steps: int = 4, **options: Any
) -> tuple[PreTrainedModel, list[dict[str, torch.Tensor]]]:
    """A journal of `steps` steps at `path`, the model, and its adapter before and after each step."""
    model = wrapped()
    zo = ZerothOrder(model, **{**OPTIONS, **options}, journal=path)
    states = [adapters(model)]
    for _ in range(steps):
        zo.step(tiny.batch(rng))
        states.append(adapters(model))
    assert zo.journal is not None
    zo.journal.close()
    return model, states


def parse(content: bytes) -> tuple[dict[str, Any], list[tuple[int, tuple[float, ...]]], int]:
    """docs/formats.md in a few lines: the header, the records, and where they begin."""
    magic, version, size = struct.unpack_from("<8sII", content)
    assert (magic, version) == (b"MOBIZOJN", 1)
    header = json.loads(content[16 : 16 + size])
    start = 16 + size + 4
    assert struct.unpack_from("<I", content, start - 4) == (zlib.crc32(content[: start - 4]),)
    width = 12 + 4 * header["queries"]
    records = []
    for at in range(start, len(content), width):
        step, *coeffs, crc = struct.unpack_from(f"<q{header['queries']}fI", content, at)
        assert crc == zlib.crc32(content[at : at + width - 4])
        records.append((step, tuple(coeffs)))
    return header, records, start


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("estimator", ["two_sided", "one_sided"])
def test_the_file_holds_the_run(
    estimator: str, distribution: str, tmp_path: Path, rng: torch.Generator
) -> None:
    model, options = wrapped(), {**OPTIONS, "estimator": estimator, "distribution": distribution}
    zo = ZerothOrder(model, **options, journal=tmp_path / "deep" / "journal")
    before, grads = adapters(model), []
    for step in range(3):
        zo.optimizer.param_groups[0]["lr"] = 0.02 / (1 + step)  # as a scheduler of torch does
        grads.append(zo.step(tiny.batch(rng)).projected_grads)
    header, records, _ = parse((tmp_path / "deep" / "journal").read_bytes())
    assert list(header) == [field.name for field in dataclasses.fields(JournalHeader)]
    names = [
        f"model.layers.{n}.{path}.weight" for n in (0, 1) for path in ("self_attn.q_proj", "mlp.down_proj")
    ]
    assert header == {
        "run_seed": 2**63 + 11 - 2**64,
        "queries": QUERIES,
        "eps": 0.05,
        "lr": 0.02,
        "lr_schedule": None,
        "steps": None,
        "normalize": False,
        "distribution": distribution,
        "estimator": estimator,
        "batch_size": None,
        "base_fingerprint": model_fingerprint(tiny.llama()),
        "data": None,
        "parameters": [{"name": name, "shape": [32, 3], "stream": parameter_stream(name)} for name in names],
    }
    expected = before
    for step, (number, coeffs) in enumerate(records):
        assert number == step
        wanted = -0.02 / (1 + step) / QUERIES * grads[step].double()
        assert_same_bits(torch.tensor(coeffs), wanted.float())
        seeds = query_seeds(2**63 + 11, step, QUERIES)
        for name, value in expected.items():
            stream = parameter_stream(f"{name}.weight")
            expected[name] = reference.perturb(value, seeds, torch.tensor(coeffs), stream, 1.0, distribution)
    assert len(records) == 3
    assert_same_adapters(model, expected)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_replay_gives_the_same_bits(distribution: str, tmp_path: Path, rng: torch.Generator) -> None:
    _, states = train(tmp_path / "journal", rng, steps=5, distribution=distribution, normalize=True)
    assert all(b.abs().max() > 0 for b in states[-1].values())
    for until in (None, 5, 2, 0):
        model = wrapped()
        steps = 5 if until is None else until
        assert replay(model, tmp_path / "journal", until) == steps
        assert_same_adapters(model, states[steps])
    for until in (-1, 6):
        with pytest.raises(ValueError, match=f"until must be from 0 to 5, .* got {until}"):
            replay(wrapped(), tmp_path / "journal", until)


def test_a_skipped_step_is_a_record_of_zeros(tmp_path: Path, rng: torch.Generator) -> None:
    model = wrapped()
    start = {name: b.normal_(generator=rng) for name, b in adapters(model).items()}
    start["model.layers.0.mlp.down_proj"][:7] = -0.0  # to which adding zeros makes a difference
    for name, layer in adapter_layers(model).items():
        layer.lora_b.data.copy_(start[name])
    twins = copy.deepcopy(model), copy.deepcopy(model)
    zo = ZerothOrder(model, **OPTIONS, journal=tmp_path / "journal")
    handle = model.model.norm.register_forward_hook(lambda *args: args[2] * float("nan"))
    assert zo.step(tiny.batch(rng)).skipped
    handle.remove()
    skipped = adapters(model)
    zo.step(tiny.batch(rng))
    _, records, _ = parse((tmp_path / "journal").read_bytes())
    assert records[0] == (0, (0.0,) * QUERIES) and any(records[1][1])
    for steps, twin, expected in ((1, twins[0], skipped), (2, twins[1], adapters(model))):
        assert replay(twin, tmp_path / "journal", steps) == steps
        assert_same_adapters(twin, expected)


def test_every_truncation(tmp_path: Path, rng: torch.Generator) -> None:
    path = tmp_path / "journal"
    _, states = train(path, rng, steps=3)
    content = path.read_bytes()
    header, coeffs = read_journal(path)
    _, _, start = parse(content)
    assert len(content) == start + 3 * RECORD
    for size in range(len(content)):
        path.write_bytes(content[:size])
        if size < start:
            with pytest.raises(ValueError, match="is no journal" if size < 8 else "header is cut short"):
                read_journal(path)
            continue
        steps = (size - start) // RECORD
        assert torch.equal(read_journal(path)[1], coeffs[:steps])
        assert path.stat().st_size == size  # reading changes nothing
        writer, recorded = JournalWriter.resume(path, header)
        with writer:
            assert writer.steps == steps and torch.equal(recorded, coeffs[:steps])
            for step in range(steps, 3):
                writer.append(step, coeffs[step])
        assert path.read_bytes() == content


def test_a_full_length_torn_record_is_cut_off(tmp_path: Path, rng: torch.Generator) -> None:
    path = tmp_path / "journal"
    _, states = train(path, rng, steps=3)
    content = path.read_bytes()
    for byte in range(1, RECORD + 1):
        torn = bytearray(content)
        torn[-byte] ^= 0x40
        path.write_bytes(torn)
        assert len(read_journal(path)[1]) == 2
    model = wrapped()
    zo = ZerothOrder(model, **OPTIONS, journal=path, resume=True)
    assert zo.steps == 2 and path.read_bytes() == content[:-RECORD]
    assert_same_adapters(model, states[2])


def test_damage_names_the_step(tmp_path: Path, rng: torch.Generator) -> None:
    path = tmp_path / "journal"
    train(path, rng, steps=3)
    content = path.read_bytes()
    _, _, start = parse(content)
    header = read_journal(path)[0]

    def damaged(message: str, bad: bytes) -> None:
        path.write_bytes(bad)
        for read in (read_journal, lambda path: replay(wrapped(), path)):
            with pytest.raises(ValueError, match=message):
                read(path)
        with pytest.raises(ValueError, match=message):
            JournalWriter.resume(path, header)
        assert path.read_bytes() == bad

    for step in (0, 1):
        for byte in range(RECORD):
            bad = bytearray(content)
            bad[start + step * RECORD + byte] ^= 1
            path.write_bytes(bad)
            with pytest.raises(ValueError, match=f"{path}: the record of step {step} is damaged"):
                read_journal(path)
    bad = bytearray(content + b"rest")
    bad[-5] ^= 1
    damaged("the record of step 2 is damaged", bytes(bad))
    damaged("expected the record of step 1, got 2", content[: start + RECORD] + content[start + 2 * RECORD :])
    damaged("expected the record of step 0, got 2", content[:start] + content[start + 2 * RECORD :])
    for byte in range(8, start):
        bad = bytearray(content)
        bad[byte] ^= 1
        path.write_bytes(bad)
        with pytest.raises(ValueError, match="its header is (damaged|cut short)|expected version 1"):
            read_journal(path)
    damaged("is no journal", b"MOBIZOJX" + content[8:])
    damaged("is no journal", b"")
    for text in (b"[]", b'{"queries": 3}', b"\xff", b'{"parameters": []}'):
        head = struct.pack("<8sII", b"MOBIZOJN", 1, len(text)) + text
        damaged("its header cannot be understood", head + struct.pack("<I", zlib.crc32(head)))


def test_resuming_gives_the_same_bits(tmp_path: Path, rng: torch.Generator) -> None:
    batches = [tiny.batch(rng) for _ in range(6)]
    model = wrapped()
    zo = ZerothOrder(model, **OPTIONS, journal=tmp_path / "one")
    for batch in batches:
        zo.step(batch)
    for done, batch in enumerate(batches):
        resumed = wrapped()
        zo = ZerothOrder(resumed, **OPTIONS, journal=tmp_path / "cut", resume=True)
        assert zo.steps == done
        zo.step(batch)
    assert_same_adapters(resumed, adapters(model))
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "one").read_bytes()


def test_steps_are_redone_one_by_one_or_at_once(tmp_path: Path, rng: torch.Generator) -> None:
    _, states = train(tmp_path / "journal", rng)
    model = wrapped()
    zo = ZerothOrder(model, **OPTIONS)
    recorded = zo.open_journal(tmp_path / "journal", resume=True)
    with pytest.raises(ValueError, match="expected a record of step 4, got step 0"):
        zo.step(tiny.batch(rng))
    assert_same_adapters(model, states[0])
    zo.redo(recorded[:1])
    assert_same_adapters(model, states[1])
    zo.redo(recorded[1:])
    assert_same_adapters(model, states[4])
    assert zo.step(tiny.batch(rng)).step == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"run_seed": 4}, "run_seed is -9223372036854775797 there, but 4 in this run"),
        ({"queries": 2}, "queries is 3 there, but 2 in this run"),
        ({"eps": 0.06}, "eps is 0.05 there, but 0.06"),
        ({"lr": 0.03, "normalize": True}, "lr is 0.02 there, but 0.03"),
        ({"normalize": True, "distribution": "rademacher"}, "normalize is False there, but True"),
        ({"distribution": "rademacher"}, "distribution is 'gaussian' there, but 'rademacher'"),
        ({"estimator": "one_sided"}, "estimator is 'two_sided' there, but 'one_sided'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_another_run_is_refused(
    options: dict[str, Any], message: str, tmp_path: Path, rng: torch.Generator
) -> None:
    train(tmp_path / "journal", rng, steps=1)
    before, model = (tmp_path / "journal").read_bytes(), wrapped()
    with pytest.raises(ValueError, match=message):
        ZerothOrder(model, **{**OPTIONS, **options}, journal=tmp_path / "journal", resume=True)
    assert (tmp_path / "journal").read_bytes() == before
    assert_same_adapters(model, adapters(wrapped()))


def test_what_the_loop_says_is_compared_too(tmp_path: Path) -> None:
    said = {"lr_schedule": "linear", "steps": 9, "batch_size": 4, "data": "ab12"}
    ZerothOrder(wrapped(), **OPTIONS).open_journal(tmp_path / "journal", **said)
    ZerothOrder(wrapped(), **OPTIONS).open_journal(tmp_path / "journal", **said, resume=True)
    for name, value in {"lr_schedule": "cosine", "steps": 10, "batch_size": None, "data": "ab13"}.items():
        with pytest.raises(ValueError, match=f"{name} is {said[name]!r} there, but {value!r} in this run"):
            ZerothOrder(wrapped(), **OPTIONS).open_journal(
                tmp_path / "journal", **{**said, name: value}, resume=True
            )


def test_another_model_is_refused(tmp_path: Path, rng: torch.Generator) -> None:
    train(tmp_path / "journal", rng, steps=1)
    fewer = wrapped(layers_to_transform=[0])
    wider = wrap(tiny.llama(), LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    other = wrapped()
    other.model.norm.weight.data[3] += 1
    for model, message in (
        (fewer, r"'model.layers.1.self_attn.q_proj.weight'.* where the model has None"),
        (wider, r"shape=\(32, 3\).* where the model has .*shape=\(32, 4\)"),
        (other, "its base_fingerprint is"),
    ):
        with pytest.raises(ValueError, match=f"of another model: .*{message}"):
            replay(model, tmp_path / "journal")
        assert all(not b.any() for b in adapters(model).values())
        with pytest.raises(ValueError, match="(parameters|base_fingerprint) is .* in this run"):
            ZerothOrder(model, **OPTIONS, journal=tmp_path / "journal", resume=True)
    with pytest.raises(ValueError, match="is not wrapped"):
        replay(tiny.llama(), tmp_path / "journal")
    with pytest.raises(FileNotFoundError, match="absent"):
        replay(wrapped(), tmp_path / "absent")


def test_a_journal_is_not_overwritten(tmp_path: Path, rng: torch.Generator) -> None:
    train(tmp_path / "journal", rng, steps=1)
    before = (tmp_path / "journal").read_bytes()
    with pytest.raises(FileExistsError, match=f"{tmp_path / 'journal'} exists already"):
        ZerothOrder(wrapped(), **OPTIONS, journal=tmp_path / "journal")
    assert (tmp_path / "journal").read_bytes() == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="journal cannot be written .File exists"):
        ZerothOrder(wrapped(), **OPTIONS, journal=tmp_path / "file" / "journal")


@pytest.mark.parametrize("extra", [0, 1, RECORD - 1])
def test_a_full_disk(extra: int, tmp_path: Path, rng: torch.Generator) -> None:
    path, model = tmp_path / "journal", wrapped()
    with full_disk(100), pytest.raises(OSError, match=f"{path} cannot be written .File too large"):
        ZerothOrder(model, **OPTIONS, journal=path)
    assert not list(tmp_path.iterdir())
    zo = ZerothOrder(model, **OPTIONS, journal=path)
    zo.step(tiny.batch(rng))
    before, content, batch = adapters(model), path.read_bytes(), tiny.batch(rng)
    with full_disk(len(content) + extra):
        for _ in range(2):
            with pytest.raises(OSError, match="step 1 cannot be recorded .*File too large.*journal"):
                zo.step(batch)
            assert zo.steps == 1 and path.read_bytes() == content
            assert_same_adapters(model, before)
    zo.step(batch)
    twin = wrapped()
    assert replay(twin, path) == 2
    assert_same_adapters(twin, adapters(model))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 0.5}, "journal needs momentum=0, got 0.5"),
        ({"weight_decay": 0.1}, "journal needs weight_decay=0, got 0.1"),
    ],
)
def test_what_a_replay_cannot_repeat(options: dict[str, float], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        ZerothOrder(wrapped(), **options, journal=tmp_path / "journal")
    with pytest.raises(ValueError, match="journal needs a model wrapped by"):
        ZerothOrder(tiny.llama(), journal=tmp_path / "journal")
    assert not list(tmp_path.iterdir())


def test_a_journal_begins_with_the_first_step(tmp_path: Path, rng: torch.Generator) -> None:
    zo = ZerothOrder(wrapped(), **OPTIONS)
    zo.step(tiny.batch(rng))
    with pytest.raises(ValueError, match="before the first step, got one after step 1"):
        zo.open_journal(tmp_path / "journal")


def test_bad_records_and_syncs(tmp_path: Path, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path / "journal", rng, steps=1)
    header = read_journal(tmp_path / "journal")[0]
    assert header.parameters == tuned_adapters(wrapped())
    with pytest.raises(ValueError, match="sync_every must be at least 1, got 0"):
        JournalWriter.create(tmp_path / "new", header, sync_every=0)
    synced: list[int] = []
    with JournalWriter.create(tmp_path / "new", header, sync_every=3) as writer:
        monkeypatch.setattr("os.fsync", synced.append)
        with pytest.raises(ValueError, match="expected a record of step 0, got step 1"):
            writer.append(1, torch.zeros(QUERIES))
        for coeffs in (torch.zeros(QUERIES + 1), torch.zeros(QUERIES, dtype=torch.float64)):
            with pytest.raises(ValueError, match=r"coeffs must be float32 \[3\], got torch.float"):
                writer.append(0, coeffs)
        for step in range(7):
            writer.append(step, torch.full((QUERIES,), float(step)))
            assert len(synced) == (step + 1) // 3
    assert len(synced) == 3
    writer.close()
    assert torch.equal(read_journal(tmp_path / "new")[1], torch.arange(7.0)[:, None].expand(7, QUERIES))
