"""example, summary -> picture, widget.

In: examples, scores, histories and summaries, all of them values. Out: the token inspector and matplotlib figures.
Read `inspector.py` first; `inspector.js` is what runs in a browser. Nothing here knows the trainer.
"""
