"""ZOTrainer: Trainer's loop around our step, against steps by hand; its checkpoints, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny
import torch
from helpers import assert_same_bits
from peft import LoraConfig, PeftModel
from torch import nn
from transformers import EarlyStoppingCallback, HfArgumentParser, Trainer, TrainerCallback, TrainingArguments

import mobizo_kernels as mobizo
from mobizo_kernels.integrations.transformers import ZOConfig, ZOTrainer
from mobizo_kernels.journal import read_journal, replay
from mobizo_kernels.lora import adapter_layers, is_wrapped

LORA: dict[str, Any] = {
    "r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM",
}  # fmt: skip
Row = dict[str, list[int]]


def rows(rng: torch.Generator, count: int = 16) -> list[Row]:
    lengths = [4 + index % 5 for index in range(count)]
    batches = [tiny.batch(rng, (length,), labelled=1 + length % 3) for length in lengths]
    return [{name: column[0].tolist() for name, column in batch.items()} for batch in batches]


def collator(side: str) -> Callable[[list[Row]], dict[str, torch.Tensor]]:
    """Fills rows up as transformers' collators do."""

    def collate(batch: list[Row]) -> dict[str, torch.Tensor]:
        width = max(len(row["input_ids"]) for row in batch)
        filled = {}
        for name, value in {"input_ids": 0, "attention_mask": 0, "labels": -100}.items():
            filler = {id(row): [value] * (width - len(row[name])) for row in batch}
            both = [(row[name], filler[id(row)]) for row in batch]
            filled[name] = torch.tensor([a + b if side == "right" else b + a for a, b in both])
        return filled

    return collate


def a_model(kind: str = "peft", seed: int = 0) -> Any:
    torch.manual_seed(seed)  # of PEFT's LoRA-A
    if kind in ("peft", "named", "both factors"):
        name = "default" if kind == "peft" else "mine"
        model = peft.get_peft_model(tiny.llama(), LoraConfig(**LORA, lora_dropout=0.1), adapter_name=name)
        if kind == "named":
            model.add_adapter("other", LoraConfig(r=2, target_modules=["k_proj"]))
        return mobizo.wrap_parameters(model) if kind == "both factors" else model
    if kind == "wrapped":
        return mobizo.wrap(tiny.llama(), LoraConfig(**LORA), seed=seed)
    return tiny.llama()


def config(directory: Path, **options: Any) -> ZOConfig:
    given: dict[str, Any] = {
        "max_steps": 4, "per_device_train_batch_size": 2, "use_cpu": True, "report_to": [],
        "logging_steps": 1, "disable_tqdm": True, "save_strategy": "no", "queries": 2, "eps": 1e-2, **options,
    }  # fmt: skip
    return ZOConfig(str(directory), **given)


def trainer(model: Any, args: Any, data: list[Row], side: str = "right", **options: Any) -> ZOTrainer:
    return ZOTrainer(model, args, train_dataset=data, data_collator=collator(side), **options)


def tensors(model: Any) -> dict[str, torch.Tensor]:
    if is_wrapped(model):
        return {name: layer.lora_b.clone() for name, layer in adapter_layers(model).items()}
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters()}


def assert_equal(model: Any, other: Any) -> None:
    for (name, one), another in zip(tensors(model).items(), tensors(other).values(), strict=True):
        assert one.isfinite().all(), name
        assert_same_bits(one, another)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["peft", "wrapped", "parameters"])
def test_steps_are_those_by_hand(kind: str, side: str, tmp_path: Path, rng: torch.Generator) -> None:
    data, options = rows(rng), {"queries": 2, "eps": 1e-2, "normalize": True}
    args = config(
        tmp_path, train_sampling_strategy="sequential", gradient_accumulation_steps=2, learning_rate=0.01,
        lr_scheduler_type="linear", seed=7,
    )  # fmt: skip
    model, by_hand = a_model(kind), a_model(kind)
    run = trainer(model, args, data, side)
    run.train()

    zo = mobizo.ZerothOrder(by_hand, lr=0.01, run_seed=7, **options)
    losses, norms = [], []
    for step in range(4):
        parts = [collator(side)(data[start : start + 2]) for start in (4 * step, 4 * step + 2)]
        zo.optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / 4)
        out = zo.step(parts)
        losses.append(out.loss)
        slopes = (out.losses[:2] - out.losses[2:]) / 2e-2
        norms.append(slopes.square().mean().sqrt().item())
    if kind == "peft":
        mobizo.to_peft(by_hand)
    assert_equal(model, by_hand)
    logged = [entry for entry in run.state.log_history if "loss" in entry]
    assert [entry["loss"] for entry in logged] == pytest.approx(losses, rel=1e-6)
    assert [entry["grad_norm"] for entry in logged] == pytest.approx(norms, rel=1e-4)
    assert [entry["learning_rate"] for entry in logged] == pytest.approx([0.01, 0.0075, 0.005, 0.0025])


def test_no_gradient_is_computed(
    tmp_path: Path, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a gradient")

    monkeypatch.setattr(torch.Tensor, "backward", refuse)
    monkeypatch.setattr(torch.autograd, "backward", refuse)
    modes = []
    model = a_model()
    model.get_base_model().model.register_forward_hook(
        lambda module, args, output: modes.append((torch.is_grad_enabled(), module.training))
    )
    trainer(model, config(tmp_path), rows(rng)).train()
    assert modes and set(modes) == {(False, False)}
    assert all(parameter.grad is None for parameter in model.parameters())


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step == self.step


RESUMED: dict[str, tuple[str, dict[str, Any]]] = {
    "peft": ("peft", {}),
    "adam": ("wrapped", {"optimizer": "adam", "learning_rate": 1e-3}),
    "momentum": ("peft", {"momentum": 0.9, "weight_decay": 0.1, "gradient_accumulation_steps": 2}),
    "parameters": ("parameters", {"optimizer": "adam", "learning_rate": 1e-3, "eps": 1e-3}),
    "bf16": ("peft", {"bf16": True}),
    "named": ("named", {}),
    "both factors": ("both factors", {"distribution": "outer", "learning_rate": 1e-3}),
}


@pytest.mark.parametrize(("kind", "options"), RESUMED.values(), ids=RESUMED)
def test_resuming(kind: str, options: dict[str, Any], tmp_path: Path, rng: torch.Generator) -> None:
    data = rows(rng)
    options = {"max_steps": 10, "save_strategy": "steps", "save_steps": 5, **options}
    straight, stopped = a_model(kind), a_model(kind)
    trainer(straight, config(tmp_path / "one", **options), data).train()
    trainer(stopped, config(tmp_path / "two", **options), data, callbacks=[StopAt(5)]).train()
    # In another process PEFT draws another LoRA-A; that of `wrap` is the caller's.
    resumed = a_model(kind, seed=1 if kind in ("peft", "both factors") else 0)
    run = trainer(resumed, config(tmp_path / "two", **options), data)
    run.train(resume_from_checkpoint=str(tmp_path / "two/checkpoint-5"))
    assert run.zo is not None and run.zo.steps == 10
    assert_equal(resumed, straight)
    if kind not in ("parameters", "both factors"):
        place = "mine/" if kind == "named" else ""  # as PEFT has it
        for name in (f"{place}adapter_model.safetensors", "run.journal"):
            one, two = (tmp_path / side / "checkpoint-10" / name for side in ("one", "two"))
            assert one.read_bytes() == two.read_bytes()


def test_a_checkpoint_is_peft_s_with_the_journal(tmp_path: Path, rng: torch.Generator) -> None:
    model = a_model()
    trainer(model, config(tmp_path, save_strategy="steps", save_steps=2), rows(rng)).train()
    loaded = PeftModel.from_pretrained(tiny.llama(), tmp_path / "checkpoint-4")
    ids = torch.arange(12).view(2, 6)
    model.eval()
    torch.testing.assert_close(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    header, records = read_journal(tmp_path / "checkpoint-2/run.journal")
    assert (header.queries, header.run_seed, len(records)) == (2, 42, 2)
    fresh = mobizo.wrap(a_model())
    assert replay(fresh, tmp_path / "checkpoint-4/run.journal") == 4
    assert_equal(mobizo.to_peft(fresh), model)


def test_a_second_run_in_the_same_directory(tmp_path: Path, rng: torch.Generator) -> None:
    data = rows(rng)
    for _ in range(2):
        trainer(a_model(), config(tmp_path), data).train()
    _, records = read_journal(tmp_path / "run.journal")
    assert len(records) == 4
    run = trainer(a_model(), config(tmp_path, bf16=True), data)
    run.train()
    first = tensors(run.model)
    run.train()  # goes on from where the adapter is
    assert any(not torch.equal(first[name], tensor) for name, tensor in tensors(run.model).items())


def test_the_best_model_and_early_stopping(tmp_path: Path, rng: torch.Generator) -> None:
    data = rows(rng)
    args = config(
        tmp_path, max_steps=12, save_strategy="steps", save_steps=1, eval_strategy="steps", eval_steps=1,
        load_best_model_at_end=True, metric_for_best_model="score", greater_is_better=True,
    )  # fmt: skip
    calls: list[float] = []

    def score(prediction: Any) -> dict[str, float]:
        assert prediction.predictions.shape[:2] == prediction.label_ids.shape
        calls.append(-float(abs(len(calls) - 1)))  # the second is the best
        return {"score": calls[-1]}

    model = a_model()
    run = ZOTrainer(
        model, args, train_dataset=data, eval_dataset=data[:4], data_collator=collator("right"),
        callbacks=[EarlyStoppingCallback(2)], compute_metrics=score,
    )  # fmt: skip
    run.train()
    assert all("eval_loss" in entry for entry in run.state.log_history if "eval_score" in entry)
    assert run.state.global_step == 4 and str(run.state.best_model_checkpoint).endswith("checkpoint-2")
    best = PeftModel.from_pretrained(tiny.llama(), tmp_path / "checkpoint-2")
    for name, tensor in peft.get_peft_model_state_dict(model).items():
        assert_same_bits(tensor.detach(), peft.get_peft_model_state_dict(best)[name])


def test_it_learns(tmp_path: Path, rng: torch.Generator) -> None:
    data = rows(rng, 4)
    args = config(
        tmp_path, max_steps=40, per_device_train_batch_size=4, queries=8, lr_scheduler_type="constant"
    )
    run = trainer(a_model(), args, data)
    run.train()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.3


def test_bfloat16_base(tmp_path: Path, rng: torch.Generator) -> None:
    model = mobizo.wrap(tiny.llama().to(torch.bfloat16), LoraConfig(**LORA))
    run = trainer(model, config(tmp_path), rows(rng))
    run.train()
    assert run.zo is not None and run.zo.skipped_steps == 0
    assert all(bool(layer.lora_b.any()) for layer in adapter_layers(model).values())


def test_it_compiles(tmp_path: Path, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mobizo_kernels.loss.compiled.BACKEND", "eager")
    run = trainer(a_model(), config(tmp_path, max_steps=1, torch_compile=True), rows(rng))
    run.train()
    assert run.zo is not None and run.zo.loss.compiles and run.zo.steps == 1


def test_arguments_from_a_command_line(tmp_path: Path) -> None:
    words = ["--output_dir", str(tmp_path), "--queries", "3", "--normalize", "false", "--use_cpu"]
    (args,) = HfArgumentParser(ZOConfig).parse_args_into_dataclasses(words)
    assert (args.queries, args.normalize, args.learning_rate) == (3, False, 5e-2)


def test_an_objective(tmp_path: Path, rng: torch.Generator) -> None:
    def objective(model: nn.Module, batch: Mapping[str, torch.Tensor], groups: int) -> torch.Tensor:
        return torch.full((groups,), float(len(batch["input_ids"])))

    run = trainer(a_model(), config(tmp_path), rows(rng), objective=objective)
    run.train()
    assert [entry["loss"] for entry in run.state.log_history if "loss" in entry] == [2.0] * 4


def test_a_peft_model_that_the_caller_wrapped_stays_so(tmp_path: Path, rng: torch.Generator) -> None:
    data, model, other = rows(rng), mobizo.wrap(a_model()), a_model()
    args = config(tmp_path, save_strategy="steps", save_steps=2, save_only_model=True)
    trainer(model, args, data).train()
    assert is_wrapped(model) and (tmp_path / "checkpoint-4/adapter_model.safetensors").is_file()
    trainer(other, config(tmp_path), data).train()
    assert_equal(mobizo.to_peft(model), other)


def test_an_error_gives_the_adapter_back(tmp_path: Path, rng: torch.Generator) -> None:
    data = [{**row, "labels": [-100] * len(row["labels"])} for row in rows(rng)]
    model = a_model()
    with pytest.raises(ValueError, match="no label"):
        trainer(model, config(tmp_path), data).train()
    assert not is_wrapped(model)
    model.merge_and_unload()


def test_resuming_what_is_not_that_run(tmp_path: Path, rng: torch.Generator) -> None:
    data, options = rows(rng), {"save_strategy": "steps", "save_steps": 2}
    trainer(a_model(), config(tmp_path, **options), data).train()
    checkpoint = tmp_path / "checkpoint-2"

    def refused(words: str, kind: type[Exception] = ValueError, **others: Any) -> None:
        with pytest.raises(kind, match=words):
            run = trainer(a_model(), config(tmp_path / "other", **{**options, **others}), data)
            run.train(resume_from_checkpoint=str(checkpoint))

    refused("queries is 2 there, but 3 in this run", queries=3)
    refused("run_seed is 42 there, but 1 in this run", seed=1)
    content = (checkpoint / "run.journal").read_bytes()
    (checkpoint / "run.journal").write_bytes((tmp_path / "checkpoint-4/run.journal").read_bytes())
    refused("the adapter of .*checkpoint-2 is not what its journal gives")
    (checkpoint / "run.journal").unlink()
    refused("checkpoint-2 holds no run.journal", FileNotFoundError)
    (checkpoint / "run.journal").write_bytes(content)
    started = a_model()
    mobizo.ZerothOrder(started).step(collator("left")(data[:2]))
    mobizo.to_peft(started)
    trainer(started, config(tmp_path / "warm", **options), data).train()
    checkpoint = tmp_path / "warm/checkpoint-2"
    refused("began with a LoRA-B that is neither zero nor that of the model")


@pytest.mark.parametrize("damage", ["settings", "adapter"])
def test_a_refused_resume_changes_nothing(damage: str, tmp_path: Path, rng: torch.Generator) -> None:
    data, options = rows(rng), {"save_strategy": "steps", "save_steps": 2}
    trainer(a_model(), config(tmp_path, **options), data).train()
    journal, checkpoint = tmp_path / "run.journal", tmp_path / "checkpoint-2"
    content = journal.read_bytes()
    model = a_model(seed=5)
    mobizo.ZerothOrder(model).step(collator("left")(data[:2]))
    mobizo.to_peft(model)
    before = tensors(model)
    if damage == "adapter":
        (checkpoint / "run.journal").write_bytes(content)
    others = {"queries": 3} if damage == "settings" else {}
    with pytest.raises(ValueError, match="queries is 2 there|is not what its journal gives"):
        run = trainer(model, config(tmp_path, **{**options, **others}), data)
        run.train(resume_from_checkpoint=str(checkpoint))
    assert journal.read_bytes() == content and not is_wrapped(model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-4", "run.journal"]
    for name, tensor in tensors(model).items():
        assert_same_bits(tensor, before[name])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"queries": 0}, "queries must be at least 1, got 0"),
        ({"estimator": "both"}, "estimator must be one of two_sided, one_sided, centred, got 'both'"),
        ({"optimizer": "adamw"}, "optimizer must be one of sgd, adam, sign, got 'adamw'"),
        ({"optimizer": "adam", "momentum": 0.9}, "momentum must be 0 with optimizer 'adam'"),
        ({"max_grad_norm": 1.0}, "max_grad_norm must be 0, got 1.0: there is no gradient to clip"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor must be 0, got 0.1"),
        ({"neftune_noise_alpha": 5}, "neftune_noise_alpha must be None, got 5"),
        ({"optim": "adafactor"}, "optim must be .*, got .*: optimizer=... names one of ours"),
        ({"distribution": "normal"}, "distribution must be one of gaussian, .* got 'normal'"),
        ({"normalize": "no"}, "normalize must be True or False, got 'no'"),
        ({"eps": "1e-2"}, "eps must be a number, got '1e-2'"),  # as YAML reads it
        ({"learning_rate": "1e-2"}, "lr must be a number, got '1e-2'"),
        ({"momentum": "0.9"}, "momentum must be a number, got '0.9'"),
    ],
)
def test_arguments_that_mean_nothing(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        trainer(a_model(), config(tmp_path / "out", **options), [])
    assert not (tmp_path / "out").exists()


def test_what_a_step_would_leave_out(tmp_path: Path) -> None:
    args = config(tmp_path / "out")

    class Own(ZOTrainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            return super().compute_loss(*args, **kwargs)

    model = a_model()
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    for make, words in (
        (lambda: Own(model, args), "Own.compute_loss must go: a step does not call it"),
        (lambda: ZOTrainer(model, args, optimizers=(sgd, None)), "optimizers must be left out"),
        (lambda: ZOTrainer(model, args, compute_loss_func=max), "compute_loss_func must be left out"),
        (lambda: ZOTrainer(torch.compile(model), args), "model must be .*: torch_compile=True compiles"),
        (lambda: ZOTrainer(model), "args must be a ZOConfig, or have ZOArguments mixed in, got NoneType"),
        (
            lambda: ZOTrainer(model, TrainingArguments(str(tmp_path / "out"), use_cpu=True)),
            "args must be a ZOConfig, or have ZOArguments mixed in, got TrainingArguments",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            make()
    assert not (tmp_path / "out").exists() and issubclass(ZOTrainer, Trainer)
