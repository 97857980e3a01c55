"""The command `explain`: shows which moments and places of a video an answer rests on."""

from __future__ import annotations

from pathlib import Path

from cnnbert.clip_pictures import pictures
from cnnbert.data.samplers import CenterClip
from cnnbert.data.transforms import EvalTransform
from cnnbert.errors import InputError
from cnnbert.explanation import explain_clip, frames_of_step
from cnnbert.explanation_picture import Explained, draw_picture, page, write_video
from cnnbert.inference import ranked
from cnnbert.loading import load
from cnnbert.machine import best_device
from cnnbert.outputs import new_file, printable, whole_file, write_whole
from cnnbert.tasks.recognition import ActionRecognition

KINDS = (".png", ".mp4", ".html")
SMALLEST_SHOWN = 224
"""Frames are shown at least about as large, in pixels, however small the network sees them."""


def explain(
    checkpoint: str,
    video: str,
    *,
    out: tuple[str, ...] | None = None,
    label: str | None = None,
    start_seconds: float | None = None,
    force: bool = False,
) -> None:
    """Show which moments and which places of a video a model's answer rests on.

    The moments: what BERT's class token attends to, in all and for each attention head. Of heads without attention
    over time, how much the log-odds of the class, log(p / (1 - p)), fall when a moment is hidden. The places: Grad-
    CAM on the backbone's features, which is the paper's localisation in space in its weak form. All of it is of one
    clip, as long as those that the model was trained on.

    Args:
        checkpoint: What cnnbert fit wrote, such as runs/.../checkpoints/best.ckpt; or best or last, the newest such
            below runs.
        video: The video.
        out: Files to write, a picture (.png), a video (.mp4), a page with both (.html), or several of them; by default
            all three, NAME.explained.png and so on, in the current folder.
        label: The class to explain; by default the most probable one.
        start_seconds: Where the clip begins, in seconds; by default it is the one in the middle of the video.
        force: Replace files that are there.
    """
    names = [f"{Path(video).stem}.explained{kind}" for kind in KINDS] if out is None else list(out)
    for name in names:
        if Path(name).suffix.lower() not in KINDS:
            raise InputError(f"out={name} must end in {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    targets = [new_file(name, force) for name in names]
    model = load(checkpoint)
    if label is not None and label not in model.class_names:
        raise InputError(f"label={label} is not one of the model's classes, {', '.join(model.class_names)}")
    model.to(best_device())
    explained = explain_video(model, video, label, start_seconds)
    for target in targets:
        _write(explained, target)
    print(printable(f"{explained.path}, {explained.seconds[0]:.2f} to {explained.seconds[-1]:.2f} s"))
    print(f"  {explained.title(5)}")
    print(f"  {explained.measure}:")
    for step, value in enumerate(explained.explanation.moments.tolist()):
        first = explained.seconds[frames_of_step(step, explained.temporal_stride)][0]
        print(f"    from {first:6.2f} s  {explained.told(value)}")
    print("\n".join(printable(str(target)) for target in targets), flush=True)


def explain_video(
    model: ActionRecognition, video: str, label: str | None = None, start_seconds: float | None = None
) -> Explained:
    """Return what a model's answer to a clip of a video rests on.

    Args:
        model: A model that `cnnbert.load` made.
        video: The file.
        label: The class to explain, one of the model's; None for the most probable.
        start_seconds: Where the clip begins, at least 0; None takes the clip in the middle.

    Raises:
        InputError: The model was not loaded from a checkpoint, or the clip begins behind the video's end.
        VideoReadError: The video cannot be read.
    """
    data = model.data
    with data.reader.open(video) as opened:
        indices = CenterClip(data.clip_length, data.stride)(opened.num_frames, opened.fps)[0]
        if start_seconds is not None:
            first = round(start_seconds * opened.fps)
            if not 0 <= first < opened.num_frames:
                length = opened.num_frames / opened.fps
                raise InputError(f"start_seconds={start_seconds:g} must be in [0, {length:.2f}), the video's length")
            indices = (indices - indices[0] + first) % opened.num_frames
        frames, fps = opened.frames(indices), opened.fps
    clip = EvalTransform(data.frame_size, data.resize, antialias=data.antialias)(frames)[0].transpose(0, 1)
    times = -(-SMALLEST_SHOWN // data.frame_size)
    resize = data.resize * times if isinstance(data.resize, int) else tuple(times * side for side in data.resize)
    seen = frames[:, :3] if frames.shape[1] == 5 else pictures(frames)  # of both streams the colours
    shown = EvalTransform(times * data.frame_size, resize)(seen)[0]  # type: ignore[arg-type]
    model.eval()
    target = None if label is None else model.class_names.index(label)
    explanation = explain_clip(model, clip, target)
    return Explained(
        path=video,
        classes=ranked(model, explanation.probabilities, 5),
        target=model.class_names[explanation.target],
        seconds=[float(index) / fps for index in indices],
        fps=fps / data.stride,
        frames=shown,
        temporal_stride=model.backbone.temporal_stride,
        explanation=explanation,
    )


def _write(explained: Explained, target: Path) -> None:
    kind = target.suffix.lower()
    if kind == ".html":
        write_whole(target, page(explained))
        return
    with whole_file(target) as part:
        if kind == ".png":
            part.write_bytes(draw_picture(explained))
        else:
            write_video(explained, part)
