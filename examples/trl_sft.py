"""TRL's SFTTrainer with forward passes only, on chats.

python trl_sft.py MODEL CHATS.jsonl OUTPUT

A line of the file is {"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}.
"""

import sys

import peft
import torch
from datasets import load_dataset

from mobizo_kernels.integrations.trl import ZOSFTConfig, ZOSFTTrainer

model, chats, output = sys.argv[1:]
trainer = ZOSFTTrainer(
    model,
    ZOSFTConfig(
        output,
        num_train_epochs=1,
        per_device_train_batch_size=4,
        logging_steps=1,
        report_to=[],
        use_cpu=not torch.cuda.is_available(),  # or TRL asks for bfloat16 on a GPU
    ),
    train_dataset=load_dataset("json", data_files=chats, split="train"),
    peft_config=peft.LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
)
trainer.train()
trainer.save_model(output)
