"""row -> messages -> example: what a data set holds, as tokens with a weight and a kind each.

In: rows of any known layout (`rows.py` loads them), and a tokenizer.
Out: a `datasets.Dataset` of examples, `id`, `input_ids`, `weights`, `kinds`, and a report of what became of every row.
Read `preparation.py` first: it is the whole way in one call. `render.py` is where text becomes tokens.
"""
