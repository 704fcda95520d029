"""The embedded reasoner: a small model that solves word problems in four ways of thinking, and its problems.

`python -m btsft_nb.tiny` makes model and tokenizer again, from one seed.
"""

from .problems import SIZES, WAYS, rows, way_of

# Training arguments that suit this model and its data sets of 1,000 rows, on a CPU and a GPU alike.
TRAINING = {
    "max_steps": 80,
    "per_device_train_batch_size": 16,
    "learning_rate": 1e-3,
    "warmup_steps": 5,
    "optim": "adamw_8bit",
    "logging_steps": 5,
    "save_strategy": "no",
}

__all__ = ["SIZES", "TRAINING", "WAYS", "rows", "way_of"]
