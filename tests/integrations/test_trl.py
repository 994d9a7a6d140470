"""TRL's SFTTrainer without gradients, on chats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_texts
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM

pytest.importorskip("trl", reason="TRL is not installed: pip install 'mobizo-kernels[trl]'")

MARKED = tiny_texts.CHAT_TEMPLATE.replace(
    "{{ message.content }}<|end|>",
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|end|>{% endgeneration %}"
    "{% else %}{{ message.content }}<|end|>{% endif %}",
)
OPTIONS: dict[str, dict[str, Any]] = {
    "chats": {},
    "answers": {"assistant_only_loss": True},
    "packed": {"packing": True, "max_length": 64},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_chats(options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import load_dataset

    from mobizo_kernels.integrations.trl import ZOSFTConfig, ZOSFTTrainer

    for variable in ("TRL_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(variable, "1")
    chats = [
        {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["response"]},
            ]
        }
        for row in tiny_texts.questions(16)
    ]
    file = tiny_texts.write_jsonl(tmp_path / "chats.jsonl", chats)
    data = load_dataset("json", data_files=str(file), split="train", cache_dir=str(tmp_path / "cache"))
    directory = tiny_texts.save_chat_model(tmp_path / "model")
    args = ZOSFTConfig(
        str(tmp_path / "out"), max_steps=4, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        use_cpu=True, report_to=[], logging_steps=1, disable_tqdm=True, eval_strategy="steps", eval_steps=2,
        save_steps=2, queries=2, **options,
    )  # fmt: skip
    run = ZOSFTTrainer(
        AutoModelForCausalLM.from_pretrained(directory), args, train_dataset=data,
        eval_dataset=data.select(range(4)), processing_class=tiny_texts.chat_tokenizer(MARKED),
        peft_config=LoraConfig(r=3, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )  # fmt: skip
    run.train()
    assert run.zo is not None and (run.zo.steps, run.zo.skipped_steps) == (4, 0)
    assert isinstance(run.model, PeftModel)
    assert {"adapter_config.json", "adapter_model.safetensors", "run.journal"} <= {
        path.name for path in (tmp_path / "out/checkpoint-4").iterdir()
    }
    logged = {name for entry in run.state.log_history for name in entry}
    assert {"loss", "grad_norm", "learning_rate", "eval_loss"} <= logged
