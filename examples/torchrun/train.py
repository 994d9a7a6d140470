"""Tune a LoRA by many processes that send each other losses alone.

    torchrun --nproc-per-node 4 examples/torchrun/train.py MODEL rows.jsonl out/

A row is {"prompt": ..., "response": ...}. Killed and started again, a run goes on from out/run.journal.
"""

import argparse
import json
from datetime import timedelta
from pathlib import Path

import peft
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, AutoTokenizer

import mobizo_kernels as mobizo

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model")
parser.add_argument("rows", type=Path)
parser.add_argument("out", type=Path)
parser.add_argument("--split", choices=["queries", "rows"], default="queries")
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--batch-size", type=int, default=8)
parser.add_argument("--queries", type=int, default=16)
options = parser.parse_args()

# Scalars travel by the CPU, whatever the model runs on. A rank that is silent for so long is taken for lost.
dist.init_process_group("gloo", timeout=timedelta(minutes=5))
rank, ranks = dist.get_rank(), dist.get_world_size()
if options.split == "rows" and options.batch_size < ranks:
    parser.error(f"--batch-size must be at least {ranks}, a row for each process, got {options.batch_size}")

tokenizer = AutoTokenizer.from_pretrained(options.model)
model = AutoModelForCausalLM.from_pretrained(options.model).eval()
mobizo.wrap(model, peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))


def batch_of(rows):
    """The rows as tensors; the responses are to be learned."""
    texts = [
        (tokenizer(row["prompt"]).input_ids, tokenizer(row["response"], add_special_tokens=False).input_ids)
        for row in rows
    ]
    width = max(len(prompt) + len(response) for prompt, response in texts)
    batch = {"input_ids": [], "attention_mask": [], "labels": []}
    for prompt, response in texts:
        padding = width - len(prompt) - len(response)
        batch["input_ids"].append(prompt + response + [0] * padding)
        batch["attention_mask"].append([1] * (width - padding) + [0] * padding)
        batch["labels"].append([-100] * len(prompt) + response + [-100] * padding)
    return {name: torch.tensor(values) for name, values in batch.items()}


lines = options.rows.read_text(encoding="utf-8").splitlines()
rows = [json.loads(line) for line in lines]
zo = mobizo.ZerothOrder(
    model,
    queries=options.queries,
    eps=1e-2,
    lr=3e-2,
    process_group=dist.group.WORLD,
    split=options.split,
    journal=options.out / "run.journal",  # rank 0 writes it; all go on from it
    resume=True,
)
for step in range(zo.steps, options.steps):
    first = step * options.batch_size
    taken = [rows[(first + number) % len(rows)] for number in range(options.batch_size)]
    if options.split == "rows":
        taken = taken[rank::ranks]  # of "queries" every rank has all of them
    output = zo.step(batch_of(taken))
    if rank == 0:
        print(f"step {output.step}: loss {output.loss:.4f}", flush=True)
zo.check_ranks()
zo.close_journal()
if rank == 0:
    mobizo.save_adapter(model, options.out)
dist.destroy_process_group()
