"""A program that trains without torch, made and run from Python: what a device does with the same .pte.

python device.py MODEL REVIEWS.csv OUTPUT

MODEL is "smollm2", a directory of transformers', or a name on the hub. The file has columns text and label
(0 or 1). OUTPUT gets the program, its tokenizer and the adapter. With the first two of them, `mobizo_runner
train program.pte REVIEWS.csv --tokenizer tokenizer.json` trains without Python.
"""

import sys
from pathlib import Path

from mobizo_kernels.data import PromptEncoder, tokenizer_definition
from mobizo_kernels.executorch import Trainer, export_training_program
from mobizo_kernels.models import load_model

name, reviews, output = sys.argv[1], sys.argv[2], Path(sys.argv[3])
output.mkdir(parents=True, exist_ok=True)
program, definition, dataset = (
    output / file for file in ("program.pte", "tokenizer.json", "rows.safetensors")
)

model, tokenizer = load_model(name)
encoder = PromptEncoder(tokenizer, "{text} It was", {"0": " terrible", "1": " great"})
export_training_program(
    model,
    program,
    queries=8,
    batch_size=8,
    max_length=48,
    targets=["q_proj", "v_proj"],
    candidate_tokens=encoder.candidate_tokens,
    tokenizer=tokenizer,
    prompt=encoder,
)
definition.write_text(tokenizer_definition(tokenizer), encoding="utf-8")

trainer = Trainer(program)
trainer.tokenize(reviews, dataset, tokenizer=definition, steps=40)
trainer.train(
    dataset,
    steps=40,
    eps=1e-2,
    journal=output / "run.journal",  # a run that is killed goes on from it, with resume=True
    on_step=lambda report: print(f"step {report.step}: loss {report.loss:.3f}"),
)
trainer.save_peft(output / "adapter")  # PeftModel.from_pretrained loads it
print(f"accuracy on the test rows: {trainer.evaluate(dataset).accuracy:.1%}")
