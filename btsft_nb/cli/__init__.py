"""A file, or a line in a terminal -> all of the other rooms.

In: settings as YAML and `key=value`. Out: run folders, reports, merged models.
Read `main.py` first; `stages.py` has each stage as one call, which a notebook can make as well.
"""
