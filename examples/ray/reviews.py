"""Labelled texts tuned on two actors of Ray, each with half of the rows, that send each other scalars.

python reviews.py MODEL ROWS.csv OUTPUT [STEPS]

Rows have the columns text and label, 0 or 1.
"""

import sys

import peft
import ray
from transformers import AutoModelForCausalLM, AutoTokenizer

import mobizo_kernels as mobizo
from mobizo_kernels.data import PromptEncoder, collate, load_splits
from mobizo_kernels.integrations.ray import RayRounds

WORKERS = 2
name, rows, output = sys.argv[1:4]
steps = int(sys.argv[4]) if len(sys.argv) > 4 else 20
words = {"0": " terrible", "1": " great"}
encoder = PromptEncoder(AutoTokenizer.from_pretrained(name), "{text} It was", words)
train = encoder.encode(load_splits(rows).train)


def make(worker):
    model = AutoModelForCausalLM.from_pretrained(name).eval()
    mobizo.wrap(model, peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
    return mobizo.ZerothOrder(model, queries=8, lr=0.1, eps=0.01, candidate_tokens=encoder.candidate_tokens)


def batch(worker, step):
    own = train[worker::WORKERS]
    return collate([own[(step * 8 + i) % len(own)] for i in range(8)], pad_token=0)


ray.init()  # or ray.init("auto"), on a cluster
with RayRounds(WORKERS, make, batch, journal=f"{output}/run.journal") as group:
    for _ in range(steps):
        made = group.step()
        print(made.step, made.loss, made.refused or "")
    group.update()
    group.call(lambda zo: mobizo.save_adapter(zo.model, f"{output}/adapter"))
