"""name -> model and tokenizer: from the package, the Hub, a folder or a run; quantised, with adapters, or whole.

In: a name and a `ModelConfig`. Out: a transformers model, ready to train, and its tokenizer.
Read `load.py` first.
"""
