"""Trains and judges a network that gives every video one class, or any number of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from pytorch_lightning.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, CyclicLR, LambdaLR, LinearLR, OneCycleLR, SequentialLR

from cnnbert.backbones.base import Backbone
from cnnbert.backbones.weights import BACKBONE_DIGEST, state_digest
from cnnbert.data.datamodule import VideoDataModule
from cnnbert.data.loaders import Batch
from cnnbert.data.protocols import CountFailed
from cnnbert.data.records import VideoRecord
from cnnbert.errors import InputError, VideoReadError
from cnnbert.heads.base import Head
from cnnbert.layers.block import Block
from cnnbert.machine import lay_out_channels_last, prefers_channels_last
from cnnbert.tasks.metrics import VideoScores, accuracies, average_precisions, average_views

# These set the learning rate anew instead of changing the one that there is, and so would undo a warm-up.
SETTING_SCHEDULERS = (CosineAnnealingWarmRestarts, CyclicLR, LambdaLR, OneCycleLR, SequentialLR)

CLIPS_AT_ONCE = 32
"""Most clips that go through the network together in evaluation, so that many views of a video fit the memory."""


class ActionRecognition(LightningModule):
    """Classifies videos: a backbone turns clips into features, a head turns features into logits.

    The defaults are the recipe of Garg & Murugan 2021: AdamW with a learning rate of 1e-4, divided by 10 when the
    validation loss has not fallen for 5 epochs; the weight decay of 1e-3, which the paper leaves open, is that of LTM
    (artest08/LateTemporalModeling3DCNN).

    Args:
        backbone: Turns clips into a grid of features.
        head: Turns features into logits; a class of head with its own arguments.
        class_names: The classes in the order of the outputs (K of them).
        clip_length: Frames of the clips that the network is trained on.
        optimizer: Any torch optimizer.
        scheduler: Any torch learning rate scheduler, or null for a constant rate. torch's ReduceLROnPlateau watches
            val/loss; pytorch_lightning.cli.ReduceLROnPlateau takes another metric as `monitor`.
        scheduler_interval: Whether the scheduler moves on after an epoch or after a step.
        warmup_steps: Steps over which the learning rate rises linearly from a hundredth to its full value.
        backbone_lr_factor: Learning rate of the backbone over that of the head, above 0.
        decay_everything: Whether weight decay applies to norms, biases, class token and positions too, as in LTM.
        freeze_backbone: Whether the backbone keeps its weights and its BatchNorm statistics, so that only the head
            is trained.
        label_smoothing: Share of the target spread over all classes in training, in [0, 1); of several labels, each is
            spread over there and not there.
        class_weights: Weight of each class in the training loss, in the order of class_names; all 1 by default.
            `balanced` weighs a class by the inverse of its number of training videos, so that their mean weight is 1.
            Of several labels, the weight is that of the class being there over that of its not being there, and
            `balanced` is the number of training videos without the class over that of those with it.
        multi_label: Whether a video may have several classes or none: each has a probability of its own (sigmoid), and
            the loss is binary cross-entropy. On the command line `data.label_separator` says so.
        memory_format: Layout of the convolutions' tensors; `auto` takes the faster one for the machine.
        gradient_checkpointing: Whether training keeps of every residual block its input alone, and computes the rest a
            second time in the backward pass: for about a third more time a step it takes far less memory, and gives the
            same.
        compile_backbone: Whether torch.compile makes one program of the backbone before it is trained: minutes once,
            for faster steps. It needs a C++ compiler on a CPU, Triton on a GPU.
    """

    _data: VideoDataModule | None = None
    _was_validated = False

    def __init__(
        self,
        backbone: Backbone,
        head: Callable[[int, int], Head],
        class_names: list[str],
        clip_length: int = 32,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-4, weight_decay=1e-3),
        scheduler: LRSchedulerCallable | None = lambda optimizer: ReduceLROnPlateau(
            optimizer, monitor="val/loss", patience=5
        ),
        scheduler_interval: Literal["epoch", "step"] = "epoch",
        warmup_steps: int = 0,
        backbone_lr_factor: float = 1.0,
        decay_everything: bool = True,
        freeze_backbone: bool = False,
        label_smoothing: float = 0.0,
        class_weights: list[float] | Literal["balanced"] | None = None,
        multi_label: bool = False,
        memory_format: Literal["auto", "channels_first", "channels_last"] = "auto",
        gradient_checkpointing: bool = False,
        compile_backbone: bool = False,
    ) -> None:
        super().__init__()
        given = None if isinstance(class_weights, str) else class_weights
        if isinstance(class_weights, str) and class_weights != "balanced":
            raise InputError(f"class_weights={class_weights!r} must be a list of numbers, balanced or null")
        if given is not None and len(given) != len(class_names):
            raise InputError(
                f"class_weights has {len(given)} numbers; give one for each of the {len(class_names)} classes"
            )
        if given is not None and min(given) < 0:
            raise InputError(f"class_weights={given} must not be negative")
        if not 0 <= label_smoothing < 1:
            raise InputError(f"label_smoothing={label_smoothing} must be in [0, 1)")
        if backbone_lr_factor <= 0:
            raise InputError(f"backbone_lr_factor={backbone_lr_factor} must be above 0; freeze_backbone stops it")
        if warmup_steps < 0:
            raise InputError(f"warmup_steps={warmup_steps} must not be negative")
        self.save_hyperparameters(logger=False)
        self.class_names = class_names
        self.clip_length = clip_length
        self.backbone = backbone
        self.head = head(backbone.out_channels, len(class_names))
        self.head.set_num_steps(backbone.num_steps(clip_length))
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.scheduler_interval = scheduler_interval
        self.warmup_steps = warmup_steps
        self.backbone_lr_factor = backbone_lr_factor
        self.decay_everything = decay_everything
        self.freeze_backbone = freeze_backbone
        self.memory_format = memory_format
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights
        self.multi_label = multi_label
        self.compile_backbone = compile_backbone
        if gradient_checkpointing and compile_backbone:
            raise InputError("gradient_checkpointing does not go with compile_backbone; leave one of them out")
        blocks = [module for module in self.modules() if isinstance(module, Block)]
        if gradient_checkpointing and not blocks:
            raise InputError(
                f"gradient_checkpointing: {type(backbone).__name__} has no block that can be computed a second time; "
                "make its blocks subclasses of cnnbert.layers.block.Block, or leave it out"
            )
        for block in blocks:
            block.is_recomputed = gradient_checkpointing
        weights = None if given is None else torch.tensor(given, dtype=torch.float32)
        self.loss: nn.Module
        if multi_label:
            self.loss = nn.BCEWithLogitsLoss(pos_weight=weights)
        else:
            self.loss = nn.CrossEntropyLoss(weights, label_smoothing=label_smoothing)
        # Kept out of the checkpoint's tensors.
        self.loss.register_buffer("pos_weight" if multi_label else "weight", weights, persistent=False)
        self.scores = VideoScores(multi_label)
        if freeze_backbone:
            self.backbone.requires_grad_(False)

    def forward(self, clips: Tensor) -> Tensor:
        """Return the logits (B, K) of clips (B, C, T, H, W), uint8 or floating point on the [0, 1] scale."""
        return self.head(self.backbone(clips))

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probabilities of the classes, in [0, 1], for logits (B, K)."""
        return logits.sigmoid() if self.multi_label else logits.softmax(1)

    def classify(
        self, video: str, top_k: int | None = 5, num_clips: int = 10, num_crops: Literal[1, 3, 10] = 1
    ) -> dict[str, float]:
        """Return the most probable classes of a video with their probabilities in [0, 1], the highest first.

        The model is one that `cnnbert.load` made. It runs on the device that it lies on, and the probabilities are the
        mean over the views.

        Args:
            video: The file.
            top_k: How many classes; None for all, and no more than there are.
            num_clips: Clips, spread evenly from the video's beginning to its end; 1 takes the one in the middle.
            num_crops: Crops of each clip: 1 (centre), 3 (along the longer side) or 10 (corners and centre, mirrored
                too).

        Raises:
            InputError: The model was not loaded from a checkpoint, or a number is out of its range.
            VideoReadError: The video is missing, or none, or damaged.
        """
        from cnnbert.inference import ranked, video_scores, views_of  # which know this module

        ((_, found),) = video_scores(self, [VideoRecord(str(video))], views_of(num_clips, num_crops))
        if isinstance(found, VideoReadError):
            raise found
        return ranked(self, found, top_k)

    @property
    def data(self) -> VideoDataModule:
        """Makes clips of any videos as the model was trained on.

        Raises:
            InputError: `cnnbert.load` did not make the model.
        """
        if self._data is None:
            raise InputError("the model does not know which clips it was trained on; take one that cnnbert.load made")
        return self._data

    @data.setter
    def data(self, data: VideoDataModule) -> None:
        self._data = data

    def train(self, mode: bool = True) -> ActionRecognition:
        """Switch to training or evaluation; a frozen backbone stays in evaluation."""
        super().train(mode)
        if self.freeze_backbone:
            self.backbone.eval()
        return self

    @property
    def main_metric(self) -> str:
        """The metric by which the best checkpoint is chosen: `map` of several labels a video, else `top1`."""
        return "map" if self.multi_label else "top1"

    @property
    def channels_last(self) -> bool:
        """Whether convolutions run with the channels innermost on the trainer's device."""
        if self.memory_format == "auto":
            return prefers_channels_last(self.trainer.strategy.root_device, str(self.trainer.precision))
        return self.memory_format == "channels_last"

    def setup(self, stage: str) -> None:
        """Check that the clips fit the backbone and lay out its weights for the machine."""
        if self.trainer.datamodule is not None:  # type: ignore[attr-defined]
            data = self.trainer.datamodule  # type: ignore[attr-defined]
            self.backbone.check_clip(data.clip_length, data.frame_size, data.frame_size)
            if isinstance(data, VideoDataModule):
                self.backbone.check_channels(data.reader.channels)
            if isinstance(data, VideoDataModule) and (data.label_separator is not None) != self.multi_label:
                raise InputError(
                    f"multi_label={self.multi_label} of the model does not go with "
                    f"label_separator={data.label_separator!r} of the data; both or neither allow several classes"
                )
        if self.channels_last:
            self.lay_out_channels_last()
        if self.compile_backbone and stage == "fit":
            self.backbone.compile()
        # A sharding strategy takes the network apart next, and no process has all of it any more to load weights into.
        if stage == "fit" and self.trainer.strategy.restore_checkpoint_after_setup:
            self._load_pretrained()

    def lay_out_channels_last(self) -> None:
        """Lay out the weights of the backbone's convolutions with the channels innermost."""
        lay_out_channels_last(self.backbone)

    def on_fit_start(self) -> None:
        """Refuse what would hang, load pretrained weights unless others have been loaded, and switch to training.

        Here, since `prepare_data` and `setup` come before the checkpoint of a resumed run and are not told of it. The
        switch is left to the model by Lightning, and `build` gives one in evaluation.
        """
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        skips = isinstance(data, VideoDataModule) and data.max_failed_share > 0
        if skips and any(isinstance(module, nn.SyncBatchNorm) for module in self.modules()):
            raise InputError(
                f"sync_batchnorm does not go with max_failed_share={data.max_failed_share:g}: a process without one "
                "readable video in its batch would keep the others waiting; set max_failed_share to 0"
            )
        if self.class_weights == "balanced":
            if not isinstance(data, VideoDataModule):
                raise InputError("class_weights=balanced needs a VideoDataModule, which knows the classes' sizes")
            if self.multi_label:
                self.loss.pos_weight = self._balanced_positives(data)
            else:
                self.loss.weight = self._balanced_weights(data)
        self._load_pretrained()
        self.train()

    def _balanced_weights(self, data: Any) -> Tensor:
        """Return N / (K * the number of training videos) of every class, (K,)."""
        if data.balanced_sampling:
            raise InputError(
                "class_weights=balanced and balanced_sampling together would favour small classes twice; leave one out"
            )
        sizes = torch.bincount(data.datasets["train"].labels, minlength=len(self.class_names))
        return (sizes.sum() / (len(sizes) * sizes)).to(self.device)

    def _balanced_positives(self, data: Any) -> Tensor:
        """Return the number of training videos without each class over that of those with it, (K,)."""
        labels = data.datasets["train"].labels
        sizes = labels.sum(0)
        everywhere = [self.class_names[number] for number in (sizes == len(labels)).nonzero()[:, 0].tolist()]
        if everywhere:
            raise InputError(
                f"every training video has the class {', '.join(everywhere)}, which class_weights=balanced would weigh "
                "with 0; drop the class, or list the weights"
            )
        return ((len(labels) - sizes) / sizes).to(self.device)

    def _load_pretrained(self) -> None:
        if self.backbone.was_loaded or all(part.weights is None for part in self.backbone.parts):
            return
        try:
            if self.trainer.local_rank == 0:
                self.backbone.fetch_pretrained()  # once a machine
        finally:
            self.trainer.strategy.barrier()
        rank_zero_info(self.backbone.load_pretrained())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch, each view a clip with its video's label; 0 where no video could be read."""
        if len(batch["index"]) == 0:  # the other processes wait for this one's gradients
            return 0.0 * torch.stack([weight.sum() for weight in self.parameters() if weight.requires_grad]).sum()
        num_views = batch["clip"].shape[1]
        label = batch["label"].repeat_interleave(num_views, dim=0)  # (B*V,), or (B*V, K) of several labels a video
        logits = self(batch["clip"].flatten(0, 1))  # (B*V, K)
        if self.multi_label:
            target = label * (1 - self.label_smoothing) + self.label_smoothing / 2
            loss = self.loss(logits.float(), target)
            self.log("train/loss", loss, prog_bar=True, batch_size=len(label))
            return loss
        loss = self.loss(logits.float(), label)
        top1 = (logits.argmax(1) == label).float().mean()
        values = {"train/loss": loss, "train/clip_top1": top1}
        self.log_dict(values, prog_bar=True, batch_size=len(label))
        return loss

    def view_logits(self, clips: Tensor) -> Tensor:
        """Return the logits (B, V, K) of every view of clips (B, V, C, T, H, W)."""
        logits = torch.cat([self(some) for some in clips.flatten(0, 1).split(CLIPS_AT_ONCE)])  # (B*V, K)
        return logits.unflatten(0, clips.shape[:2])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect the scores of a batch."""
        self.predict_step(batch, batch_idx)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect the scores of a batch."""
        self.predict_step(batch, batch_idx)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Collect the scores of a batch, and return the probabilities (B, K) of its videos that could be read."""
        no_views = torch.empty(len(batch["failures"]), 0, len(self.class_names), device=self.device)
        if batch["failures"]:
            index = torch.tensor([failure["index"] for failure in batch["failures"]], device=self.device)
            label = torch.tensor([failure["label"] for failure in batch["failures"]], device=self.device)
            self.scores.update(index, label, no_views)
        if len(batch["index"]) == 0:
            return no_views[:0].mean(1)
        logits = self.view_logits(batch["clip"])
        self.scores.update(batch["index"], batch["label"], logits)
        return self.probabilities(average_views(logits, self.scores.average, self.multi_label))

    def on_validation_epoch_start(self) -> None:
        """Forget the videos of the epoch before."""
        self._start_scores("val")

    def on_test_epoch_start(self) -> None:
        """Forget the videos of the epoch before."""
        self._start_scores("test")

    def on_predict_epoch_start(self) -> None:
        """Forget the videos of the epoch before."""
        self._start_scores("predict")

    def _start_scores(self, split: str) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        self.scores.reset()
        self.scores.average = data.views(split).average if isinstance(data, VideoDataModule) else "logits"

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Move a scheduler on, unless it watches a metric from epoch to epoch: see `on_train_epoch_end`."""
        if not self._watches_epochs(scheduler):
            super().lr_scheduler_step(scheduler, metric)

    def _watches_epochs(self, scheduler: Any) -> bool:
        return isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau) and self.scheduler_interval == "epoch"

    def on_train_epoch_end(self) -> None:
        """Log how many training videos could not be read, if any, and move a scheduler on that watches a metric.

        Lightning would do that after the epoch's checkpoint, and a run that goes on from it would leave it out.
        """
        values = self.trainer.callback_metrics
        for config in self.trainer.lr_scheduler_configs:
            if not (self._was_validated and self._watches_epochs(config.scheduler)):
                continue
            if config.monitor not in values:
                known = ", ".join(sorted(values))
                raise InputError(f"the scheduler watches {config.monitor}, which is not logged; give one of {known}")
            scheduler: Any = config.scheduler
            scheduler.step(values[config.monitor])
        self._was_validated = False
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, VideoDataModule) and data.failures["train"]:
            self.log("train/failed_videos", float(len(data.failures["train"])))

    def on_validation_epoch_end(self) -> None:
        """Log the accuracies of the validation videos."""
        self._log_accuracies("val")
        self._was_validated = not self.trainer.sanity_checking

    def on_test_epoch_end(self) -> None:
        """Log the accuracies of the test videos."""
        self._log_accuracies("test")

    def _log_accuracies(self, stage: str) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        known = isinstance(data, VideoDataModule)
        videos = self.scores.compute()
        count_failed: CountFailed = data.count_failed if known else "wrong"
        counted = videos.was_read | (count_failed == "wrong")
        has_class = not self.multi_label or bool((videos.label[counted] == 1).any())
        if not (videos.was_read.any() and has_class):
            if self.trainer.sanity_checking:  # of a few videos only
                return
            failed = data.failed_videos(stage) if known else "no video read"
            why = "no video has any class" if videos.was_read.any() else failed
            raise InputError(f"there is nothing to judge by: {why}")
        values = (average_precisions if self.multi_label else accuracies)(videos, count_failed)
        for name, value in values.items():
            self.log(f"{stage}/{name}", value, prog_bar=name in ("loss", self.main_metric), sync_dist=True)

    def configure_optimizers(self) -> Any:
        """Return the optimizer with its groups of parameters, and its schedulers."""
        optimizer = self.optimizer(self._parameter_groups())
        for group in optimizer.param_groups:
            if group["name"].startswith("backbone"):
                group["lr"] *= self.backbone_lr_factor
        schedulers: list[dict[str, Any]] = []
        if self.warmup_steps > 0:
            warmup = LinearLR(optimizer, start_factor=0.01, total_iters=self.warmup_steps)
            schedulers.append({"scheduler": warmup, "interval": "step", "name": "lr"})
        if self.scheduler is not None:
            scheduler = self.scheduler(optimizer)
            if self.warmup_steps > 0 and isinstance(scheduler, SETTING_SCHEDULERS):
                raise InputError(
                    f"warmup_steps={self.warmup_steps} does not go with {type(scheduler).__name__}, which sets the "
                    "learning rate itself; leave warmup_steps at 0 or take another scheduler, such as CosineAnnealingLR"
                )
            entry: dict[str, Any] = {
                "scheduler": scheduler,
                "interval": self.scheduler_interval,
                "name": "lr",
            }
            if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
                entry["monitor"] = getattr(scheduler, "monitor", "val/loss")
                entry["strict"] = False  # epochs may be without validation
            schedulers.append(entry)
        return [optimizer], schedulers

    def _parameter_groups(self) -> list[dict[str, Any]]:
        groups: dict[str, list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            part = "backbone" if name.startswith("backbone.") else "head"
            spared = parameter.ndim < 2 or name.removeprefix("head.") in self.head.undecayed
            if spared and not self.decay_everything:
                part += "/undecayed"
            groups.setdefault(part, []).append(parameter)
        return [
            {
                "name": name,
                "params": parameters,
                **({"weight_decay": 0.0} if name.endswith("/undecayed") else {}),
            }
            for name, parameters in groups.items()
        ]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another model, naming what differs; complete that of a head alone."""
        if checkpoint.get("hyper_parameters", {}).get("multi_label", False) != self.multi_label:
            kind = "one class; set label_separator to null" if self.multi_label else "several; set label_separator"
            raise InputError(f"the checkpoint is of a model that gives a video {kind}")
        if "state_dict" not in checkpoint:  # a sharding strategy has loaded it, and would have refused others
            return
        if BACKBONE_DIGEST in checkpoint:
            self._load_backbone_of(checkpoint[BACKBONE_DIGEST])
            state = {f"backbone.{name}": tensor for name, tensor in self.backbone.state_dict().items()}
            checkpoint["state_dict"] = {**checkpoint["state_dict"], **state}
        theirs, ours = checkpoint["state_dict"], self.state_dict()
        resizable = {f"head.{name}" for name in self.head.resizable}
        missing = [name for name in ours if name not in theirs]
        extra = [name for name in theirs if name not in ours]
        resized = [
            f"{name} {tuple(theirs[name].shape)} instead of {tuple(ours[name].shape)}"
            for name in ours
            if name in theirs and theirs[name].shape != ours[name].shape and name not in resizable
        ]
        differences = {"without": missing, "with": extra, "with other shapes:": resized}
        told = [f"{word} {', '.join(names[:3])} ({len(names)})" for word, names in differences.items() if names]
        if told:
            raise InputError(
                f"the checkpoint is of another model than {type(self.backbone).__name__} with "
                f"{type(self.head).__name__}: {'; '.join(told)}; leave out --config to test the checkpoint's own model"
            )

    def _load_backbone_of(self, expected: str) -> None:
        """Load the pretrained weights that a head's features were made with, known by their digest."""
        self.backbone.fetch_pretrained()
        self.backbone.load_pretrained()
        if state_digest(self.backbone) == expected:
            return
        names = [part.weights for part in self.backbone.parts]
        if None in names:
            raise InputError(
                "the checkpoint holds a head without its backbone, whose weights were random ones that nothing has "
                "kept; give `cnnbert features` weights, or train the whole with `cnnbert fit`"
            )
        raise InputError(
            f"the checkpoint holds a head without its backbone, and {', '.join(map(str, names))} has other weights "
            "now than those that its features were made with"
        )
