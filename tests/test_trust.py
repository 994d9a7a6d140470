"""What the files of a stranger may do, and whom a run talks to: docs/security.md."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import SHORT, run
from peft import LoraConfig
from programs import tiny_dataset, tiny_program
from tiny import batch, llama
from tiny_texts import TEMPLATE, WORDS, reviews, save_model, tokenizer, write_csv

import mobizo_kernels
from mobizo_kernels import load_adapter, save_adapter, wrap
from mobizo_kernels.data import CachingEncoder, token_cache
from mobizo_kernels.errors import InputError
from mobizo_kernels.integrations.transformers import ZOConfig, ZOTrainer
from mobizo_kernels.models import load_model

STRACE = shutil.which("strace")


class Command:
    """Runs a shell command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """The file that `payload` makes when it runs."""
    return tmp_path / "ran"


@pytest.fixture
def payload(mark: Path) -> Command:
    command = Command(f"touch {mark}")
    pickle.loads(pickle.dumps(command))
    assert mark.exists()  # it would do harm
    mark.unlink()
    return command


def test_a_pickle_of_weights_runs_nothing(tmp_path: Path, payload: Command, mark: Path) -> None:
    directory = save_model(tmp_path / "model")
    (directory / "model.safetensors").unlink()
    torch.save({"model.embed_tokens.weight": payload}, directory / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot be loaded"):
        load_model(str(directory))
    assert not mark.exists()


def test_a_pickle_of_an_adapter_is_not_read(tmp_path: Path, payload: Command, mark: Path) -> None:
    directory = saved_adapter(tmp_path)
    (directory / "adapter_model.safetensors").unlink()
    torch.save({"lora_A": payload}, directory / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match=r"holds no adapter_model\.safetensors"):
        load_adapter(llama(), directory)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "scheduler.pt", "training_args.bin"])
def test_a_pickle_in_a_checkpoint_runs_nothing(
    name: str, tmp_path: Path, payload: Command, mark: Path, rng: torch.Generator
) -> None:
    row = {key: column[0].tolist() for key, column in batch(rng, (6,)).items()}
    options: dict[str, Any] = {"save_steps": 2, "use_cpu": True, "report_to": [], "disable_tqdm": True}

    def trainer(steps: int) -> ZOTrainer:
        model = wrap(llama(), LoraConfig(r=2, target_modules=["q_proj"]))
        config = ZOConfig(str(tmp_path / "run"), max_steps=steps, **options)
        return ZOTrainer(model, config, train_dataset=[row])

    trainer(2).train()
    checkpoint = tmp_path / "run" / "checkpoint-2"
    assert (checkpoint / name).exists()
    torch.save(payload, checkpoint / name)
    with nullcontext() if name == "training_args.bin" else pytest.raises(pickle.UnpicklingError):
        trainer(4).train(resume_from_checkpoint=str(checkpoint))
    assert not mark.exists()


@pytest.mark.parametrize(
    "options",
    [
        {"megatron_config": {"tensor_model_parallel_size": 1}, "megatron_core": "stranger"},
        {"auto_mapping": {"base_model_class": "Mine", "parent_library": "stranger"}},
        {"base_model_name_or_path": "stranger/model"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_an_adapter_names_no_module_to_import(
    options: dict[str, Any], tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stranger.py").write_text(f"open({str(mark)!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    directory = saved_adapter(tmp_path)
    config = directory / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | options))
    if "megatron_config" in options:
        with pytest.raises(ValueError, match=r"LoraConfig\.megatron_config=.* is not supported"):
            load_adapter(llama(), directory)
    else:
        load_adapter(llama(), directory)
    assert not mark.exists()


@pytest.mark.parametrize("tag", ["python/object/apply:os.system", "python/object/new:os.system"])
def test_a_file_of_options_makes_nothing(
    tag: str, tmp_path: Path, mark: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, text = tmp_path / "run.yaml", f"!!{tag} ['touch {mark}']"
    for options in (f"steps: {text}", f"verbalizer: {{a: {text}}}", f"{text}: 3", text):
        file.write_text(options)
        assert run("train", f"--config={file}", f"--out={tmp_path / 'out'}") == 2
        assert "could not determine a constructor for the tag" in capsys.readouterr().err
    assert not mark.exists()


@pytest.mark.parametrize("file", ["../outside.safetensors", "/outside.safetensors", "sub/../../outside"])
def test_an_index_of_weights_names_no_file_elsewhere(file: str, tmp_path: Path) -> None:
    directory = save_model(tmp_path / "model")
    (directory / "model.safetensors").rename(tmp_path / "outside.safetensors")
    index = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": file}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=f"expected names of files beside .*, got '{re.escape(file)}'"):
        load_model(str(directory))


def test_kept_tokens_are_their_owners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens are texts. The umask of most machines lets others read what is in a home."""
    monkeypatch.setenv("MOBIZO_CACHE", str(tmp_path))
    monkeypatch.setattr(token_cache, "LEAST_CHARACTERS", 0)
    before = os.umask(0o022)
    try:
        CachingEncoder(tokenizer(), TEMPLATE, WORDS).encode(reviews())
    finally:
        os.umask(before)
    (kept,) = (tmp_path / "tokens").iterdir()
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700


@pytest.mark.skipif(STRACE is None, reason="strace is not installed")
def test_a_run_talks_to_nobody(tmp_path: Path) -> None:
    """From a model's directory to a tuned adapter, in torch."""
    arguments = [
        "train",
        f"--model={save_model(tmp_path / 'model')}",
        f"--data={write_csv(tmp_path / 'data.csv', reviews())}",
        f"--out={tmp_path / 'out'}",
        *SHORT,
    ]
    program = [sys.executable, "-c", "from mobizo_kernels.cli.main import run; run()"]
    assert not addresses([*program, *arguments], tmp_path)
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").exists()


@pytest.mark.executorch
@pytest.mark.skipif(STRACE is None, reason="strace is not installed")
def test_the_native_trainer_talks_to_nobody(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, rng: torch.Generator
) -> None:
    executorch = pytest.importorskip("executorch")
    program, data = tiny_program(tmp_path_factory), tiny_dataset(tmp_path / "data.safetensors", rng)
    runner = Path(mobizo_kernels.__file__).parent / "executorch" / "mobizo_runner"
    out = tmp_path / "adapter.safetensors"
    libraries = {"LD_LIBRARY_PATH": str(Path(next(iter(executorch.__path__)), "lib"))}
    command = [str(runner), "train", str(program), str(data), "--steps=2", f"--adapter-out={out}"]
    assert not addresses(command, tmp_path, **libraries)
    assert out.exists()


def saved_adapter(folder: Path) -> Path:
    save_adapter(wrap(llama(), LoraConfig(r=2, target_modules=["q_proj"])), folder / "adapter")
    return folder / "adapter"


def addresses(command: Sequence[str], folder: Path, **environment: str) -> list[str]:
    """The lines of strace in which a command, or a child of it, asks for an internet socket."""
    log = folder / "strace.log"
    strace = [str(STRACE), "--follow-forks", "--seccomp-bpf", "--trace=socket", f"--output={log}"]
    if subprocess.run([*strace, "true"], capture_output=True).returncode != 0:
        pytest.skip("this machine does not let processes be traced")
    # Without a proxy of this machine's, and as a user has it: not told to be offline.
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))
    }
    done = subprocess.run([*strace, *command], capture_output=True, text=True, env={**clean, **environment})
    assert done.returncode == 0, done.stderr
    return [line for line in log.read_text().splitlines() if "AF_INET" in line]
