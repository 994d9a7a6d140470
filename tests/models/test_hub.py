"""Names on the hub where the hub cannot be asked: the cache, or one sentence at once."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import peft
import pytest
from huggingface_hub import constants
from tiny_texts import save_model

import mobizo_kernels as mobizo
from mobizo_kernels.errors import InputError
from mobizo_kernels.lora import adapter_config
from mobizo_kernels.models import load_model
from mobizo_kernels.models.hub import hub_source


@pytest.fixture(params=["offline", "unreachable"])
def nowhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The hub does not answer; gives what the message says of that."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and never listens
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", request.param == "offline")
        hub_source.cache_clear()
        yield "HF_HUB_OFFLINE is set" if request.param == "offline" else "the hub cannot be reached ("
        hub_source.cache_clear()


@pytest.mark.parametrize("name", ["smolm2", "nobody/no-model"])
def test_a_name_that_nothing_has(name: str, nowhere: str) -> None:
    with pytest.raises(InputError) as raised:
        load_model(name)
    assert str(raised.value).startswith(
        f"model '{name}': there is no directory of this name, the hub's cache"
    )
    assert nowhere in str(raised.value)


def test_a_model_in_the_cache(nowhere: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--somebody--tiny"
    snapshot = repository / "snapshots" / ("0" * 40)
    save_model(snapshot.parent / "made")
    shutil.move(snapshot.parent / "made", snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    assert hub_source("somebody/tiny") == str(snapshot)
    model, _ = load_model("somebody/tiny")
    assert not model.training
    model = mobizo.wrap(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    assert adapter_config(model)["base_model_name_or_path"] == "somebody/tiny"  # not this machine's cache


@pytest.mark.parametrize("name", ["a/b/c", "a b", "-x", "x..y", "n" * 200])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(InputError, match=r"^model '.*': expected 'smollm2', a directory that is there, or a"):
        load_model(name)
