"""examples + model -> run folder.

In: prepared examples, a model, and a `BTSFTConfig`. Out: a folder with the adapter, its history, its data report and
a card, which `Run` reads back, while the training goes on too.
Read `trainer.py` first.
"""
