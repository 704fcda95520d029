"""examples + model -> run folder.

In: prepared examples, a model, and a `BTSFTConfig`. Out: a folder with the adapter, its history, its data report and
a card, which `Run` reads back, while the training goes on too.
Read `trainer.py` first: a run and its folder, the blur, the objective, logging. What it stands on: `config.py`,
`collator.py` (examples -> batch), `checkpoints.py` (whole, and resumed with the same settings), `recording.py` (what is
written while it trains), `interrupt.py` (a stop between two steps).
"""
