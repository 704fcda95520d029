"""Keys for the Hub and for trackers, from where a user keeps them; their values are shown and written nowhere."""

import os
import shlex
from contextlib import suppress
from pathlib import Path

NAMES = ("HF_TOKEN", "WANDB_API_KEY", "TRACKIO_WRITE_TOKEN")


def load_secrets(file: str | Path = ".env") -> list[str]:
    """Sets HF_TOKEN, WANDB_API_KEY and TRACKIO_WRITE_TOKEN in the environment, those that are not set yet.

    They come from `file`, with lines NAME=value, or else from Colab's secrets. What is nowhere is no error.

    Returns the names of those that are set now, never a value. Raises ValueError for a quote that does not end.
    """
    for i, line in enumerate(
        Path(file).read_text("utf-8-sig").splitlines() if Path(file).is_file() else (), 1
    ):
        name, _, value = (
            part.strip() for part in line.strip().removeprefix("export ").partition("=")
        )
        if name in NAMES:
            try:
                os.environ[name] = os.environ.get(name) or "".join(
                    shlex.split(value, comments=True)[:1]
                )
            except ValueError:
                raise ValueError(
                    f"{file}, line {i}: {name} has a quote that does not end"
                ) from None
    with suppress(ImportError):
        from google.colab import userdata

        for name in (name for name in NAMES if not os.environ.get(name)):
            with suppress(userdata.SecretNotFoundError, userdata.NotebookAccessError):
                os.environ[name] = userdata.get(name) or ""
    return [name for name in NAMES if os.environ.get(name)]
