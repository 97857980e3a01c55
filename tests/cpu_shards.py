"""Lightning's FSDP on CPUs, for which it does not offer it."""

from __future__ import annotations

import torch
from pytorch_lightning.strategies import FSDPStrategy
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel


class CPUShards(FSDPStrategy):
    """Tells torch that CPUs are meant, which otherwise looks for GPUs; all else is Lightning's."""

    def _setup_model(self, model: nn.Module) -> nn.Module:
        return FullyShardedDataParallel(
            model,
            sharding_strategy=self.sharding_strategy,
            mixed_precision=self.mixed_precision_config,
            device_id=torch.device("cpu"),
            **self.kwargs,
        )
