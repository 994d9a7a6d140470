"""A script as many have one: a LoRA of PEFT's, tuned by transformers' Trainer on prompts and responses.

python first_order.py MODEL ROWS.jsonl OUTPUT
"""

import json
import sys

import peft
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq
from transformers import Trainer, TrainingArguments

name, rows, output = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(name)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
model = AutoModelForCausalLM.from_pretrained(name)
lora = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
model = peft.get_peft_model(model, lora)


def encoded(row):
    """Token ids of a prompt and its response; only the response is to be learned."""
    prompt = tokenizer(row["prompt"] + " ")["input_ids"]
    response = tokenizer(row["response"])["input_ids"] + [tokenizer.eos_token_id]
    return {"input_ids": prompt + response, "labels": [-100] * len(prompt) + response}


with open(rows, encoding="utf-8") as file:
    data = [encoded(json.loads(line)) for line in file]
arguments = TrainingArguments(
    output, num_train_epochs=2, per_device_train_batch_size=4, save_strategy="epoch", report_to=[]
)
collator = DataCollatorForSeq2Seq(tokenizer)
trainer = Trainer(model, arguments, train_dataset=data, data_collator=collator)
trainer.train()
model.save_pretrained(output)
model.merge_and_unload().save_pretrained(f"{output}/merged")
