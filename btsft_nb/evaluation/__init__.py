"""run -> samples -> summary -> page.

In: models or run folders, and prompts with references. Out: samples (`sampling.py`), what each token costs
(`scoring.py`), metrics with intervals (`summary.py`), and several runs side by side (`comparison.py`, `page.py`).
Read `summary.py` first.
"""
