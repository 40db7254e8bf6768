"""The run on Weights & Biases that `config.wandb.project` asks for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxvol.types import UserError


def start(config: ConfigDict, workdir: Path, run_id: str | None) -> Any:
    """The W&B run `run_id`, or a new one.  Raises UserError if wandb is missing or refuses."""
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            f"config.wandb.project is {config.wandb.project!r}, but the package wandb is not "
            "installed. Run `pip install jaxvol[wandb]`, or set --config.wandb.project=''."
        ) from error
    try:
        run = wandb.init(
            project=config.wandb.project,
            entity=config.wandb.entity or None,
            id=run_id,
            resume="allow",
            mode="offline" if config.wandb.offline else "online",
            dir=str(workdir),
            name=workdir.name,
            config=json.loads(config.to_json()),
        )
        # W&B's own step may only grow; rows that are redone after a restart need an axis of ours.
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
    # wandb raises many types: no key, no network, no such entity
    except Exception as error:
        raise UserError(
            f"Weights & Biases did not start ({type(error).__name__}: {error}). Run `wandb login`, "
            "set --config.wandb.offline=True, or --config.wandb.project='' to do without."
        ) from error
    return run
