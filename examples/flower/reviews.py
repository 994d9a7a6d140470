"""Labelled texts that lie on eight clients, tuned by seeds and scalars: a simulation in Flower.

python reviews.py MODEL ROWS.csv RUN.journal [ROUNDS]

Rows have the columns text and label, 0 or 1. A client has the rows of one label only, but for the first.
"""

import sys

import peft
from flwr.serverapp import ServerApp
from flwr.simulation import run_simulation
from transformers import AutoModelForCausalLM, AutoTokenizer

import mobizo_kernels as mobizo
from mobizo_kernels.data import PromptEncoder, collate, load_splits
from mobizo_kernels.integrations.flower import SeedsAndScalars, client_app

CLIENTS = 8
name, rows, journal = sys.argv[1:4]
rounds = int(sys.argv[4]) if len(sys.argv) > 4 else 20


WORDS = {"0": " terrible", "1": " great"}
encoder = PromptEncoder(AutoTokenizer.from_pretrained(name), "{text} It was", WORDS)
train = encoder.encode(load_splits(rows).train)


def own_rows(client):
    """Of one label, and fewer the higher the client's number; the first has some of both."""
    own = [row for row in train if client == 0 or row.label == client % 2]
    return own[client // 2 :: CLIENTS // 2][: 40 - 4 * client]


def make(context):
    model = AutoModelForCausalLM.from_pretrained(name).eval()
    mobizo.wrap(model, peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
    return mobizo.ZerothOrder(model, queries=8, lr=0.1, eps=0.01, candidate_tokens=encoder.candidate_tokens)


def batch(context, step):
    own = own_rows(context.node_config["partition-id"])
    return collate([own[(step * 4 + i) % len(own)] for i in range(4)], pad_token=0)


server, client = ServerApp(), client_app(make, batch)


@server.main()
def main(grid, context):  # no model here
    strategy = SeedsAndScalars(journal, fraction_train=0.5, min_answers=2)
    strategy.start(grid, num_rounds=rounds)


if __name__ == "__main__":
    backend = {"client_resources": {"num_cpus": 1}}
    run_simulation(server, client, num_supernodes=CLIENTS, backend_config=backend)
