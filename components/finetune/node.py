"""What each node of a TrainJob runs: python -m components.finetune.node --help.

The torch runtimes of Kubeflow Trainer say by the environment how many nodes there are, which one this is and where the
first one listens, as torchrun's own launcher reads it.
"""

import logging
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.distributed.launcher.api import LaunchConfig
from torch.distributed.run import config_from_args, get_args_parser

from components.finetune.config import FinetuneConfig
from components.finetune.nodes import give_back, received
from components.finetune.own_pod import read_environment
from components.finetune.stage import train_and_tell
from free2ds_common.cli import parse
from free2ds_common.errors import StageError
from free2ds_common.failure import Failure
from free2ds_common.kfp_task import tell
from free2ds_common.retry import StoreError
from free2ds_common.runlog import configure_logging
from free2ds_common.stopping import Stopped

logger = logging.getLogger(__name__)

# Until all have come: each may have 14 GB of weights to download first.
_MEETING_S = 7200


@dataclass(frozen=True, kw_only=True)
class NodeConfig:
    """Train as one node of a TrainJob, which a step of finetune with several nodes makes.

    Attributes:
        job: Folder of the TrainJob in an object store.
    """

    job: str


def launch_config(config: FinetuneConfig) -> LaunchConfig:
    """How the processes of this node find those of the others.

    Raises:
        StageError: The environment does not say so.
    """
    # Read from PET_NNODES, PET_NODE_RANK, PET_MASTER_ADDR and PET_MASTER_PORT; the script's name is not used.
    launch, _, _ = config_from_args(get_args_parser().parse_args([f"--rdzv-conf=timeout={_MEETING_S}", "node"]))
    if launch.max_nodes != config.nodes:
        raise StageError(
            f"nodes: got {config.nodes}, but the environment (PET_NNODES) says {launch.max_nodes}. Use a runtime of "
            "torch, such as torch-distributed."
        )
    # The runtime's own number of processes is that of the cores where there are no GPUs.
    processes = config.num_processes or max(1, torch.cuda.device_count())
    return replace(launch, nproc_per_node=processes, max_restarts=0, monitor_interval=1)


def work(uri: str) -> None:
    """Train; the first node hands back what came of it.

    Args:
        uri: Folder of the TrainJob.

    Raises:
        StageError: As of the stage.
        StoreError: A store does not answer.
    """
    with tempfile.TemporaryDirectory(prefix="free2ds-node-") as scratch:
        config = received(uri, Path(scratch))
        launch = launch_config(config)
        rank = launch.rdzv_configs["rank"]
        logger.info("node %d of %d", rank, launch.max_nodes)
        result = train_and_tell(config, launch)
        if rank == 0:
            give_back(uri, Path(scratch), result)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a node; returns the exit code."""
    config = parse(NodeConfig, argv, "python -m components.finetune.node")
    configure_logging()
    read_environment()
    try:
        work(config.job)
    except Exception as error:
        if not isinstance(error, StageError | StoreError | Stopped):
            traceback.print_exc()
        return tell(Failure.of("finetune", error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
