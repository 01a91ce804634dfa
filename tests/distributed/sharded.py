"""Train a run that exists with its weights sharded over all processes by FSDP2: ``sharded.py RUN``."""

import sys
from pathlib import Path

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from glassgpt.model import GPT
from glassgpt.planning import opening
from glassgpt.processes import join_processes
from glassgpt.runtime import resolve
from glassgpt.training.checkpoint import Run, TrainState
from glassgpt.training.loop import Trainer
from glassgpt.training.optim import Optimizers
from glassgpt.training.pretraining import Pretraining

torch.set_num_threads(1)
run = Run(Path(sys.argv[1]))
config = run.config()
runtime, stream = resolve(config.runtime), opening._load_stream(run, config)
with join_processes() as processes:
    model = GPT(config.model)
    model.init_weights(3)
    if processes.world_size > 1:
        mesh = init_device_mesh("cpu", (processes.world_size,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        assert all(parameter.to_local().numel() < parameter.numel() for parameter in model.parameters())
    optimizers = Optimizers(model, config.optim)
    task = Pretraining(config, stream, runtime.device, processes)
    result = Trainer(run, config, model, optimizers, task, runtime, TrainState(), processes=processes).train()
    assert result.final is not None
    print(f"rank {processes.rank} ended with {result.final.loss!r}", flush=True)
