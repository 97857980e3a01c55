"""Loaders of clips for every stage."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal, get_args

import torch
import torch.distributed
from pytorch_lightning import LightningDataModule
from pytorch_lightning.utilities.rank_zero import rank_zero_info
from torch.utils.data import DataLoader, DistributedSampler

from cnnbert.data.cache import check_budget, default_budget
from cnnbert.data.dataset import VideoDataset
from cnnbert.data.exclusion import Exclusion
from cnnbert.data.flow import FlowReader, RGBFlowReader  # noqa: F401  (known by their short names)
from cnnbert.data.generated import GeneratedActions
from cnnbert.data.loaders import (
    BalancedSampler,
    Batch,
    EpochSampler,
    TimedLoader,
    check_socket_path,
    collate,
    ignore_interrupts,
)
from cnnbert.data.protocols import PROTOCOLS, Average, CountFailed, Protocol
from cnnbert.data.readers import DecordReader, VideoReader
from cnnbert.data.records import VideoRecord, split_label
from cnnbert.data.samplers import CenterClip, ClipSampler, NonOverlappingClips, RandomClip, UniformClips
from cnnbert.data.sources import VideoSource, sorted_labels
from cnnbert.data.transforms import EvalTransform, TrainTransform
from cnnbert.errors import InputError, VideoReadError
from cnnbert.machine import num_cores

logger = logging.getLogger("cnnbert")


class VideoDataModule(LightningDataModule):
    """Streams clips of the videos of a source.

    Training takes a random clip of a video, crops it at several scales and mirrors it; validation takes the centre
    crop of the centre clip; testing and predicting take the views of `test_protocol`.

    Args:
        source: The videos and their labels; generated clips by default.
        clip_length: Frames of a clip (T).
        stride: Frames from one frame of a clip to the next; 1 takes consecutive frames. Less in videos that are too
            short for it.
        skip_last_frame: Whether training clips never reach a video's last frame, a flaw of LTM's code
            (artest08/LateTemporalModeling3DCNN).
        frame_size: Height and width of the frames that the network sees, in pixels.
        resize: What frames are scaled to before cropping: the short side, keeping the aspect, or [height, width].
        antialias: Whether pixels are averaged when frames shrink; False interpolates bilinearly between the nearest
            ones, as OpenCV and so LTM's code does.
        truncated_crops: Whether training crops are cut off at the frame's edge where they are larger than
            `frame_size`, a flaw of LTM's code.
        flip_probability: How often a training clip is mirrored, in [0, 1].
        unnegated_flow: Whether mirrored clips of optical flow keep the sign of motion to the right, a flaw of LTM's
            code, in training and in mirrored test crops; else it turns round, 255 - x on the 8-bit scale.
        mirrored: The class that a class turns into when mirrored, such as {turn_left: turn_right,
            turn_right: turn_left}; what the source says by default.
        validate_on_test: Whether to validate on the test videos and to train on all others, as LTM's code does. The
            learning rate and the best checkpoint are then chosen by the videos that they are judged on.
        test_protocol: The views for testing and predicting. `center_clip` takes the centre crop of the centre clip;
            `all_clips_10_crops`, by which LTM's results are computed, all clips that fit into the video without
            overlap, 10 crops of each, and the mean of their logits; `10_clips_3_crops`, as is usual on Kinetics, 10
            clips spread evenly, 3 crops of each, and the mean of their probabilities. All views of a video lie in
            memory together: about 10 N / clip_length of N frames with `all_clips_10_crops`.
        num_clips: Clips of a video in place of the protocol's; 1 takes the centre clip, more are spread evenly.
        num_crops: Crops of a clip in place of the protocol's: 1 (centre), 3 (along the longer side) or 10 (corners
            and centre, mirrored too).
        average: What is averaged over the views of a video in place of the protocol's.
        count_failed: What a validation or test video that cannot be read is in the accuracies of videos: `wrong`, or
            `left_out`. It has no clips, so that the loss and the accuracy of clips leave it out either way. In the mean
            average precision of videos of several classes, `wrong` means that its classes are never found.
        balanced_sampling: Whether training takes each class equally often, in epochs as long as without: of a large
            class some videos an epoch, others in the next, and those of a small class several times.
        clips_per_video: Clips that training takes of a video at once, decoding it once. A batch then holds
            batch_size / clips_per_video videos, and an epoch as many times more clips.
        cache: `ram` keeps the decoded frames of training and validation videos, resized but not cropped, in memory that
            the reading processes share: a video is decoded in the first epoch alone, and then as a whole.
        cache_gib: The most memory that `cache` may take, a device, in GiB; what finds no room is decoded every time. A
            frame of 128x170 takes 65 kB, 4 s of video at 25 frames a second 6.5 MB. By default half of the memory that
            is free, shared by the machine's devices, and 8 a device at most.
        max_failed_share: Share of the training videos that may turn out to be unreadable, in [0, 1]. They are left out
            and named; the run stops when there are more. 0 stops it at the first.
        reader: Opens the files: DecordReader by default; FlowReader and RGBFlowReader read optical flow that
            `cnnbert flow` has made, alone or behind the colours.
        batch_size: Clips a step and device; testing takes as many videos as hold about this many clips,
            one at a time with `all_clips_10_crops`.
        num_workers: Processes that read videos, a device; by default one a CPU core, at most 8, and one for two cores
            where the network runs on the CPU too.
        class_names: The classes in the order of the model's outputs. By default the source's; a checkpoint brings
            its own, and the source's must be among them.
        exclude: A CSV file with columns `path` and `verdict`, as `cnnbert check` writes it: videos whose verdict is
            not `ok` are left out of training, validation and testing. The division of the videos stays as it is.
        label_separator: What parts the classes in a label, such as | in run|jump, where a video may have several
            classes or none; a video of no class has the separator alone as its label. By default a label is one class.
        seed: Seeds shuffling, sampling and augmentation; by default the run's (`seed_everything`).
    """

    def __init__(
        self,
        source: VideoSource | None = None,
        clip_length: int = 32,
        stride: int = 1,
        skip_last_frame: bool = False,
        frame_size: int = 112,
        resize: int | tuple[int, int] = (128, 170),
        antialias: bool = True,
        truncated_crops: bool = False,
        flip_probability: float = 0.5,
        unnegated_flow: bool = False,
        mirrored: dict[str, str] | None = None,
        validate_on_test: bool = False,
        test_protocol: Literal["center_clip", "all_clips_10_crops", "10_clips_3_crops"] = "center_clip",
        num_clips: int | None = None,
        num_crops: Literal[1, 3, 10] | None = None,
        average: Average | None = None,
        count_failed: CountFailed = "wrong",
        balanced_sampling: bool = False,
        clips_per_video: int = 1,
        cache: Literal["ram"] | None = None,
        cache_gib: float | None = None,
        max_failed_share: float = 0.05,
        reader: VideoReader | None = None,
        batch_size: int = 8,
        num_workers: int | None = None,
        class_names: list[str] | None = None,
        exclude: str | None = None,
        label_separator: str | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        counts = {"clip_length": clip_length, "stride": stride, "frame_size": frame_size, "batch_size": batch_size}
        for name, value in {**counts, "num_clips": num_clips, "clips_per_video": clips_per_video}.items():
            if value is not None and value < 1:
                raise InputError(f"{name}={value} must be at least 1")
        if batch_size % clips_per_video:
            raise InputError(f"batch_size={batch_size} must be a multiple of clips_per_video={clips_per_video}")
        if cache not in (None, "ram"):
            raise InputError(f"cache={cache!r} must be ram or null")
        if cache == "ram" and not hasattr(os, "fork"):
            raise InputError("cache=ram needs processes that share memory by forking, which this system lacks")
        if test_protocol not in PROTOCOLS:
            raise InputError(f"test_protocol={test_protocol!r} is not one of {', '.join(PROTOCOLS)}")
        if average not in (None, *get_args(Average)):
            raise InputError(f"average={average!r} is not one of {', '.join(get_args(Average))}")
        if count_failed not in get_args(CountFailed):
            raise InputError(f"count_failed={count_failed!r} is not one of {', '.join(get_args(CountFailed))}")
        for name, share in {"flip_probability": flip_probability, "max_failed_share": max_failed_share}.items():
            if not 0 <= share <= 1:
                raise InputError(f"{name}={share} must be in [0, 1]")
        if label_separator == "":
            raise InputError("label_separator='' must be at least one character, or null where a label is one class")
        if label_separator is not None and balanced_sampling:
            raise InputError(
                "balanced_sampling does not go with label_separator, as a video may have large classes and small ones; "
                "class_weights=balanced of the model weighs their videos instead"
            )
        self.save_hyperparameters(logger=False)
        for name, part in {"source": source, "reader": reader}.items():
            if self.hparams.get(name) is part:  # built in Python: a checkpoint holds settings, no objects
                self.hparams.pop(name, None)
        self.source = GeneratedActions() if source is None else source
        self.source.label_separator = label_separator
        self.clip_length = clip_length
        self.stride = stride
        self.skip_last_frame = skip_last_frame
        self.frame_size = frame_size
        self.resize = resize
        self.antialias = antialias
        self.truncated_crops = truncated_crops
        self.flip_probability = flip_probability
        self.unnegated_flow = unnegated_flow
        self.mirrored = mirrored
        self.validate_on_test = validate_on_test
        named = PROTOCOLS[test_protocol]
        self.test_protocol = Protocol(
            named.num_clips if num_clips is None else num_clips,
            named.num_crops if num_crops is None else num_crops,
            named.average if average is None else average,
        )
        self.count_failed = count_failed
        self.balanced_sampling = balanced_sampling
        self.clips_per_video = clips_per_video
        self.caches = cache == "ram"
        self.cache_gib = cache_gib
        self.max_failed_share = max_failed_share
        self.reader = DecordReader() if reader is None else reader
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.given_class_names = class_names
        self.exclusion = None if exclude is None else Exclusion(exclude)
        self.label_separator = label_separator
        self.seed = seed
        self.datasets: dict[str, VideoDataset] = {}
        self.failures: dict[str, dict[int, VideoReadError]] = {}

    @cached_property
    def class_names(self) -> list[str]:
        """The classes in the order of the model's outputs."""
        names = self.source.class_names if self.given_class_names is None else self.given_class_names
        if self.label_separator is not None:
            parts = list(dict.fromkeys(part for name in names for part in split_label(name, self.label_separator)))
            if parts != names and self.given_class_names is not None:
                raise InputError(
                    f"label_separator={self.label_separator!r} would take names in class_names apart: "
                    f"{', '.join(name for name in names if name not in parts)}; list the classes one by one"
                )
            names = names if parts == names else sorted_labels(parts, type(self.source).__name__)
        if len(names) < 2 or len(set(names)) < len(names):
            raise InputError(f"the classes must be at least two and all different; given: {', '.join(names)}")
        return names

    def protocol(self, split: str) -> str:
        """Return in words how the videos of a split are viewed."""
        protocol = self.views(split)
        name = next((name for name, known in PROTOCOLS.items() if known == protocol), "custom")
        clips = "centre clip" if protocol.num_clips == 1 else f"{protocol.num_clips or 'all'} clips"
        crops = "centre crop" if protocol.num_crops == 1 else f"{protocol.num_crops} crops"
        words = f"protocol {name}: {clips} x {crops}, {self.clip_length} frames, stride {self.stride}"
        if protocol[:2] != (1, 1):
            words += f", mean of {protocol.average}"
        return words + (", on the test videos" if split == "val" and self.validate_on_test else "")

    def views(self, split: str) -> Protocol:
        """Return which views of a split's videos are scored, and what is averaged over them."""
        return PROTOCOLS["center_clip"] if split == "val" else self.test_protocol

    def prepare_data(self) -> None:
        """Make the source's files exist."""
        self.source.prepare()

    def setup(self, stage: str) -> None:
        """List the videos of a stage and check their labels."""
        splits = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}[stage]
        cache_gib = 0.0
        if self.caches and stage == "fit":
            num_devices = self.trainer.num_devices if self.trainer is not None else 1
            cache_gib = default_budget(num_devices) if self.cache_gib is None else self.cache_gib
            check_budget(cache_gib)
        records = {split: self._records(split) for split in splits}
        num_videos = sum(map(len, records.values()))
        for split in splits:
            share = len(records[split]) / num_videos if num_videos else 0.0
            self.datasets[split] = self.dataset(split, records[split], cache_gib * share)
            self.failures[split] = {}
        if self.exclusion is not None and stage != "predict":
            counts = [f"{number} {split}" for split, number in self.exclusion.num_left_out.items()]
            rank_zero_info(f"left out by {self.exclusion.path}: {' and '.join(counts)} videos")
            if self.exclusion.num_known == 0 and self._rank_and_world_size()[0] == 0:
                logger.warning("%s has no line for any of these videos; it may be of others", self.exclusion.path)

    def records(self, split: str) -> list[VideoRecord]:
        """Return the source's videos of a split without those that `exclude` names, which only predicting keeps."""
        records = self.source.records(split)
        return records if self.exclusion is None or split == "predict" else self.exclusion.kept(split, records)

    def _records(self, split: str) -> list[VideoRecord]:
        """Return a split's videos, their labels checked."""
        listed = "test" if split == "val" and self.validate_on_test else split
        records = self.records(listed)
        if split == "train" and self.validate_on_test:
            records = records + self.records("val")
        if split != "predict":
            self._check(listed, records)
        return records

    def _check(self, split: str, records: list[VideoRecord]) -> None:
        if not records:
            raise InputError(f"the source has no video in the split {split!r}; add some, or raise its fraction")
        counts: Counter[str | None] = Counter()
        for label, number in Counter(record.label for record in records).items():
            counts.update(dict.fromkeys([None] if label is None else split_label(label, self.label_separator), number))
        unknown = sorted(str(label) for label in counts if label not in self.class_names)
        if unknown:
            is_none = None in counts and self.label_separator is not None
            raise InputError(
                f"the {split} videos have labels that the model does not know: {', '.join(unknown)}; "
                f"its classes are {', '.join(self.class_names)}"
                + (f", and a video of no class has the label {self.label_separator}" if is_none else "")
            )
        if split == "train" and len(counts) < len(self.class_names):
            absent = [name for name in self.class_names if name not in counts]
            raise InputError(f"no training video has the class {', '.join(absent)}; add some or drop the class")

    def dataset(self, split: str, records: Sequence[VideoRecord], cache_gib: float = 0.0) -> VideoDataset:
        """Return the clips of videos as they are for a split: train, val, test or predict.

        Args:
            split: Its name.
            records: The videos.
            cache_gib: The most memory that decoded frames are kept in, in GiB; 0 keeps none.
        """
        sampler: ClipSampler
        self.reader.prepare()
        x_flow = None if self.unnegated_flow else self.reader.x_flow
        if split == "train":
            mirrored = self.source.mirrored if self.mirrored is None else self.mirrored
            unknown = sorted({*mirrored, *mirrored.values()} - set(self.class_names))
            if unknown:
                raise InputError(f"mirrored names {', '.join(unknown)}; classes are {', '.join(self.class_names)}")
            return VideoDataset(
                records,
                self.class_names,
                self.reader,
                RandomClip(self.clip_length, self.stride, self.skip_last_frame, self.clips_per_video),
                TrainTransform(
                    self.frame_size, self.resize, truncated_crops=self.truncated_crops, antialias=self.antialias
                ),
                seed=self._seed,
                flip_probability=self.flip_probability,
                mirrored=mirrored,
                label_separator=self.label_separator,
                cache_gib=cache_gib,
                x_flow=x_flow,
            )
        protocol = self.views(split)
        if protocol.num_clips is None:
            sampler = NonOverlappingClips(self.clip_length, self.stride)
        elif protocol.num_clips == 1:
            sampler = CenterClip(self.clip_length, self.stride)
        else:
            sampler = UniformClips(self.clip_length, self.stride, protocol.num_clips)
        transform = EvalTransform(self.frame_size, self.resize, protocol.num_crops, self.antialias, x_flow)
        return VideoDataset(
            records,
            self.class_names,
            self.reader,
            sampler,
            transform,
            label_separator=self.label_separator,
            cache_gib=cache_gib,
        )

    @property
    def _seed(self) -> int:
        return int(os.environ.get("PL_GLOBAL_SEED", 0)) if self.seed is None else self.seed

    def train_dataloader(self) -> TimedLoader:
        """Return the loader of the training clips, in an order of its own every epoch.

        Of an epoch in which a run was stopped, the steps that were done are left out.
        """
        rank, world_size = self._rank_and_world_size()
        kind = BalancedSampler if self.balanced_sampling else EpochSampler
        sampler = kind(self.datasets["train"], world_size, rank, shuffle=True, seed=self._seed)
        videos_a_batch = self.batch_size // self.clips_per_video
        sampler.done = self._done(videos_a_batch)
        return self._loader("train", sampler, videos_a_batch)

    def _done(self, videos_a_batch: int) -> tuple[int, int]:
        """Return the epoch in which a run was stopped that goes on, and how many samples it had taken of it."""
        if self.trainer is None or not self.trainer.fit_loop.restarting:
            return 0, 0
        loop = self.trainer.fit_loop
        epochs: Any = loop.epoch_progress.current
        steps: Any = loop.epoch_loop.batch_progress.current
        return epochs.processed, 0 if epochs.ready == epochs.processed else steps.processed * videos_a_batch

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the loader of the validation clips, in the source's order."""
        return self._evaluation_loader("val", self.batch_size)

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the loader of the test views, in the source's order."""
        return self._evaluation_loader("test", self._videos_a_batch)

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return the loader of the views to predict, in the source's order."""
        return self._evaluation_loader("predict", self._videos_a_batch)

    @property
    def _videos_a_batch(self) -> int:
        if self.test_protocol.num_clips is None:
            return 1  # as many views as the video has room for, which do not stack with another's
        return max(1, self.batch_size // (self.test_protocol.num_clips * self.test_protocol.num_crops))

    def _evaluation_loader(self, split: str, batch_size: int) -> DataLoader[Any]:
        rank, world_size = self._rank_and_world_size()
        # Repeats videos until every process has as many as the others; the metrics count each video once.
        sampler: DistributedSampler[Any] = DistributedSampler(self.datasets[split], world_size, rank, shuffle=False)
        return self._loader(split, sampler, batch_size)

    def _loader(self, split: str, sampler: DistributedSampler[Any], batch_size: int) -> TimedLoader:
        workers = self.default_workers() if self.num_workers is None else self.num_workers
        if workers:
            check_socket_path()
        return TimedLoader(
            self.datasets[split],
            batch_size=batch_size,
            sampler=sampler,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=workers > 0,
            multiprocessing_context="fork" if workers and self.datasets[split].cache else None,
            worker_init_fn=ignore_interrupts,
            generator=torch.Generator(),  # else each loader draws from the network's, more or less often by workers
        )

    def default_workers(self) -> int:
        """Return how many processes read videos where `num_workers` does not say."""
        if self.trainer is None:
            return min(8, num_cores())
        cores = num_cores() // self.trainer.num_devices
        if self.trainer.strategy.root_device.type == "cpu":
            cores //= 2  # the network needs the others
        return max(1, min(8, cores))

    def _rank_and_world_size(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Note and name the videos that could not be read, and stop the training if they are too many.

        Training counts those of all processes at every step, so that all stop together.
        """
        split: str = self.trainer.state.stage.dataloader_prefix  # type: ignore[union-attr, assignment]
        new = {failure["index"]: failure["failure"] for failure in batch["failures"]}
        known = self.failures[split]
        if split == "train":
            new = _of_all_processes(new)
        for index, error in new.items():
            if index not in known:
                known[index] = error
                if split != "train":
                    logger.warning("%s", error)
                elif self._rank_and_world_size()[0] == 0:
                    logger.warning("%s; it is left out of the training", error)
        if split == "train" and len(known) / len(self.datasets["train"]) > self.max_failed_share:
            raise InputError(
                f"{self.failed_videos('train')}; that is more than max_failed_share={self.max_failed_share:g} allows: "
                "repair or remove them, or raise it"
            )
        return batch

    def all_failures(self, split: str) -> dict[int, VideoReadError]:
        """Return why videos of a split could not be read, by index; to be called by all processes."""
        return _of_all_processes(self.failures[split])

    def failed_videos(self, split: str) -> str:
        """Return in words which videos of a split could not be read; to be called by all processes."""
        errors = [f"{error.path} ({error.why})" for _, error in sorted(self.all_failures(split).items())]
        others = f" and {len(errors) - 3} more" if len(errors) > 3 else ""
        kind = {"train": "training", "val": "validation"}.get(split, split)
        told = f"{len(errors)} of {len(self.datasets[split])} {kind} videos cannot be read"
        return f"{told}: {', '.join(errors[:3])}{others}"


def _of_all_processes(failures: dict[int, VideoReadError]) -> dict[int, VideoReadError]:
    """Return the union over the processes, the same in each."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return failures
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, failures)
    return {index: error for part in parts for index, error in part.items()}
