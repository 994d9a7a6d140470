"""Training on the inference engine: export a model to a .pte that trains itself, and run it."""
