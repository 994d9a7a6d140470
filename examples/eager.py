"""A loop of your own over labelled reviews: forward passes only, nothing else of torch's training.

python eager.py MODEL REVIEWS.csv OUTPUT

MODEL is "smollm2", a directory of transformers', or a name on the hub. The file has columns text and label,
labels being 0 (bad) and 1 (good).
"""

import sys

import peft

import mobizo_kernels as mobizo
from mobizo_kernels.data import PromptEncoder, collate, load_splits, training_batches
from mobizo_kernels.models import load_model

name, reviews, output = sys.argv[1:]
model, tokenizer = load_model(name)
encoder = PromptEncoder(tokenizer, "{text} It was", {"0": " terrible", "1": " great"})
rows = encoder.encode(load_splits(reviews).train)

mobizo.wrap(model, peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
zo = mobizo.ZerothOrder(
    model,
    estimator=mobizo.TwoSided(queries=8, eps=1e-2, normalize=True),
    lr=0.1,
    candidate_tokens=encoder.candidate_tokens,
)
for step, batch in zip(range(40), training_batches(rows, 8, seed=0), strict=False):
    out = zo.step(collate(batch, tokenizer.pad_token_id))
    print(f"step {step}: loss {out.loss:.3f}")
mobizo.save_adapter(model, output)  # PEFT's files: PeftModel.from_pretrained loads them
