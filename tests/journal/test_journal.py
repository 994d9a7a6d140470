"""The journal as a file: every byte by a parser of its own, the header of another run, what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from helpers import DISTRIBUTIONS, assert_same_bits
from journals import (
    NEW,
    OPTIONS,
    QUERIES,
    RECORD,
    adapters,
    assert_same_adapters,
    first_version,
    parse,
    second_version,
    train,
    wrapped,
)

from mobizo_kernels import reference
from mobizo_kernels.journal import JournalHeader, JournalWriter, read_journal, tuned_adapters
from mobizo_kernels.lora import adapter_layers, model_fingerprint
from mobizo_kernels.ops import parameter_stream
from mobizo_kernels.optim import StepRecord, query_seeds
from mobizo_kernels.zo import ZerothOrder


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("estimator", ["two_sided", "one_sided", "centred"])
def test_the_file_holds_the_run(
    estimator: str, distribution: str, tmp_path: Path, rng: torch.Generator
) -> None:
    model, options = wrapped(), {**OPTIONS, "estimator": estimator, "distribution": distribution}
    zo = ZerothOrder(model, **options, journal=tmp_path / "deep" / "journal")
    before, steps = adapters(model), []
    for step in range(3):
        zo.optimizer.param_groups[0]["lr"] = 0.02 / (1 + step)  # as a scheduler of torch does
        steps.append(zo.step(tiny.batch(rng)))
    content = (tmp_path / "deep" / "journal").read_bytes()
    header, records, start = parse(content)
    assert len(content) == start + 3 * RECORD
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
        "optimizer": {"name": "sgd", "momentum": 0.0, "weight_decay": 0.0},
        "batch_size": None,
        "data": None,
        "candidate_tokens": [],
        "base_fingerprint": model_fingerprint(tiny.llama()),
        "base_dtype": "float32",
        "parameters": [
            {"name": name, "shape": [32, 3], "stream": parameter_stream(name), "scaling": 2.0}
            for name in names
        ],
        "invocation_tokens": [],
        "lora_a": hash_of({name: layer.lora_a for name, layer in adapter_layers(model).items()}),
        "lora_b": hash_of({name: torch.zeros(32, 3) for name in adapter_layers(model)}),
    }
    expected = before
    for step, (number, applied, loss, rate, decay, coeffs) in enumerate(records):
        lr = 0.02 / (1 + step)
        assert (number, applied, decay) == (step, 1, 1.0)
        assert_same_bits(torch.tensor([loss, rate]), torch.tensor([steps[step].loss, lr]))
        wanted = -lr / QUERIES * steps[step].projected_grads.double()
        assert_same_bits(torch.tensor(coeffs), wanted.float())
        seeds = query_seeds(2**63 + 11, step, QUERIES)
        for name, value in expected.items():
            stream = parameter_stream(f"{name}.weight")
            expected[name] = reference.perturb(value, seeds, torch.tensor(coeffs), stream, 1.0, distribution)
    assert len(records) == 3
    assert_same_adapters(model, expected)


def hash_of(factors: dict[str, torch.Tensor]) -> str:
    """docs/formats.md in a few lines."""
    digest = hashlib.blake2b(digest_size=16)
    for name, factor in factors.items():
        digest.update(f"{name}.weight\0{factor.shape[0]},{factor.shape[1]}\0".encode())
        digest.update(factor.detach().numpy().astype("<f4").tobytes())
    return digest.hexdigest()


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
        ({"momentum": 0.5}, "optimizer is {'name': 'sgd', 'momentum': 0.0, .*} there, but .*'momentum': 0.5"),
        ({"optimizer": "adam"}, "optimizer is {'name': 'sgd', .*} there, but {'name': 'adam', 'beta1': 0.9"),
        ({"candidate_tokens": (4, 9)}, r"candidate_tokens is \[\] there, but \[4, 9\] in this run"),
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


def test_a_journal_is_not_overwritten(tmp_path: Path, rng: torch.Generator) -> None:
    train(tmp_path / "journal", rng, steps=1)
    before = (tmp_path / "journal").read_bytes()
    with pytest.raises(FileExistsError, match=f"{tmp_path / 'journal'} exists already"):
        ZerothOrder(wrapped(), **OPTIONS, journal=tmp_path / "journal")
    assert (tmp_path / "journal").read_bytes() == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="journal cannot be written .File exists"):
        ZerothOrder(wrapped(), **OPTIONS, journal=tmp_path / "file" / "journal")
    (link := tmp_path / "link").symlink_to("nowhere")
    for resume in (False, True):
        with pytest.raises(FileExistsError, match=f"{link} is a link that leads nowhere"):
            ZerothOrder(wrapped(), **OPTIONS, journal=link, resume=resume)
    assert not (tmp_path / "nowhere").exists()


def test_what_a_replay_cannot_repeat(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="journal needs a model wrapped by"):
        ZerothOrder(tiny.llama(), journal=tmp_path / "journal")
    zo = ZerothOrder(wrapped())
    zo.optimizer.add_param_group({"params": [("more", torch.zeros(3))]})
    with pytest.raises(ValueError, match="journal needs one group of parameters, got 2"):
        zo.open_journal(tmp_path / "journal")
    assert not list(tmp_path.iterdir())


def test_earlier_versions_are_read_but_not_gone_on_with(tmp_path: Path, rng: torch.Generator) -> None:
    path = tmp_path / "journal"
    train(path, rng, steps=3)
    header, records, _ = parse(path.read_bytes())
    contents = {
        1: first_version(header, [record.coeffs for record in records]),
        2: second_version(path.read_bytes()),
    }
    new_header, new = read_journal(path)
    expected = dataclasses.replace(
        new_header,
        parameters=tuple(dataclasses.replace(p, scaling=None) for p in new_header.parameters),
        **dict.fromkeys(NEW),
    )
    for version, content in contents.items():
        path.write_bytes(content + b"torn")
        old_header, old = read_journal(path)
        assert old_header == expected
        assert torch.equal(old.coeffs, new.coeffs)
        assert old.applied.all() and (old.decays == 1).all()
        assert old.losses.isnan().all() if version == 1 else torch.equal(old.losses, new.losses)
        message = f"version {version} of the format can be replayed, but not gone on with"
        with pytest.raises(ValueError, match=message):
            ZerothOrder(wrapped(), **OPTIONS, journal=path, resume=True)
        assert path.read_bytes() == content + b"torn"


def test_a_journal_begins_with_the_first_step(tmp_path: Path, rng: torch.Generator) -> None:
    zo = ZerothOrder(wrapped(), **OPTIONS)
    zo.step(tiny.batch(rng))
    with pytest.raises(ValueError, match="before the first step, got one after step 1"):
        zo.open_journal(tmp_path / "journal")


def test_bad_records_and_syncs(tmp_path: Path, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path / "journal", rng, steps=1)
    header = read_journal(tmp_path / "journal")[0]
    assert header.parameters == tuned_adapters(wrapped())
    synced: list[int] = []
    with JournalWriter.create(tmp_path / "new", header) as writer:
        monkeypatch.setattr("os.fsync", synced.append)
        with pytest.raises(ValueError, match="expected a record of step 0, got step 1"):
            writer.append(1, StepRecord(torch.zeros(QUERIES)))
        for coeffs in (torch.zeros(QUERIES + 1), torch.zeros(QUERIES, dtype=torch.float64)):
            with pytest.raises(ValueError, match=r"coeffs must be float32 \[3\], got torch.float"):
                writer.append(0, StepRecord(coeffs))
        for step in range(7):
            writer.append(step, StepRecord(torch.full((QUERIES,), float(step)), applied=step != 2))
            assert len(synced) == step + 1
    assert len(synced) == 8  # once more as it is closed
    writer.close()
    written = read_journal(tmp_path / "new")[1]
    assert torch.equal(written.coeffs, torch.arange(7.0)[:, None].expand(7, QUERIES))
    assert [record.applied for record in written[1:4]] == [True, False, True]
