"""Keys for the Hub and for trackers, from where people keep them. Their values are never shown or written."""

import os
from contextlib import suppress
from pathlib import Path

from dotenv import dotenv_values

NAMES = ("HF_TOKEN", "WANDB_API_KEY", "TRACKIO_WRITE_TOKEN")


def load_secrets(file: str | Path = ".env") -> list[str]:
    """Sets HF_TOKEN, WANDB_API_KEY and TRACKIO_WRITE_TOKEN where the environment lacks them.

    Values come from `file`, with lines NAME=value, or else from Colab's secrets. A missing file is no error.

    Returns:
        The names that are set now, never a value.

    >>> import os
    >>> file = open(".env", "w")
    >>> length = file.write("WANDB_API_KEY=ab#cd\\n")
    >>> file.close()
    >>> "WANDB_API_KEY" in bt.load_secrets()
    True
    """
    values = dotenv_values(file, interpolate=False, encoding="utf-8-sig")
    for name in NAMES:
        value = os.environ.get(name) or values.get(name) or _colab_secret(name)
        if value:
            os.environ[name] = value
    return [name for name in NAMES if os.environ.get(name)]


def _colab_secret(name):
    # an error is a secret that is absent or not shared, or another place than Colab
    with suppress(Exception):
        from google.colab import userdata

        return userdata.get(name)
