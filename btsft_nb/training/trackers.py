"""Trackers of a run: transformers' own, with their own environment variables, and "wandb-offline"."""

import netrc
import os
from urllib.parse import urlsplit

from transformers import TrainingArguments
from transformers.integrations import integration_utils

# wandb, without an account: the run stays in a local folder
integration_utils.INTEGRATION_TO_CALLBACK["wandb-offline"] = integration_utils.WandbCallback


def check_trackers(names: list[str]) -> None:
    """Raises ValueError for an unknown tracker, and for wandb without a key, which would stop and ask for one."""
    integration_utils.get_reporting_integration_callbacks(names)
    online = os.environ.get("WANDB_MODE", "online") == "online"
    if "wandb" in names and online and not _has_wandb_key():
        raise ValueError(
            "report_to='wandb' needs a key: set WANDB_API_KEY, or report_to='wandb-offline'"
        )


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    url = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    try:
        keys = netrc.netrc(os.environ.get("NETRC"))
    except (OSError, netrc.NetrcParseError):
        return False
    return keys.authenticators(urlsplit(url).netloc) is not None


def begin_wandb_run(args: TrainingArguments) -> None:
    """Begins the wandb run of a training, to which transformers' callback then logs.

    That would go on in the run of an earlier training in this process: one of another folder ends here.
    """
    import wandb

    if wandb.run and wandb.run.config.get("output_dir", args.output_dir) != args.output_dir:
        wandb.run.finish()
    if not wandb.run:
        project = os.environ.get("WANDB_PROJECT", args.project)
        mode = "offline" if "wandb-offline" in args.report_to else None
        wandb.init(project=project, name=args.run_name, mode=mode)
