"""What the README says is so: its commands run, its Python runs, its file tree is the package's."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from runpy import run_path
from typing import get_args, get_type_hints

import ltm_network
import pytest
import torch
import torch.distributed.run
import yaml
from conftest import TINY_DATA, TINY_MODEL, TINY_RUN, write_video
from test_ltm import small, small_config, write_checkpoint, write_names
from test_predictions import write_predictions

import cnnbert
from cnnbert import ablate, ablation_runs, folds
from cnnbert.backbones.weights import PUBLISHED
from cnnbert.cli import main
from cnnbert.data.datamodule import VideoDataModule
from cnnbert.data.inspection import VERDICTS
from cnnbert.data.protocols import PROTOCOLS
from cnnbert.shipped import shipped_configs
from cnnbert.summary import network_size

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


SMALL = ["--model.backbone.depth=10", "--model.backbone.width=8", "--model.backbone.weights=null"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[list[str]]:
    """Return the words of every `cnnbert` command in the README's blocks."""
    parts = [part.strip() for block in blocks("bash") for part in re.split(r"&&|\n", block)]
    return [shlex.split(part)[1:] for part in parts if re.match(r"(\.venv/bin/)?cnnbert ", part)]


def command(name):
    """Return the words of the README's only command of a name."""
    (found,) = (words for words in commands() if words[0] == name)
    return found


def test_every_block_is_known():
    """Commands of another kind would need a test of their own; CI runs the two lines that install."""
    words = {shlex.split(part)[0] for block in blocks("bash") for part in re.split(r"&&|\n", block) if part.strip()}
    assert words == {"python3", ".venv/bin/pip", ".venv/bin/cnnbert", ".venv/bin/pytest", "cnnbert"}
    assert len(commands()) == 26


def test_your_own_videos(workplace, videos):
    shutil.copytree(videos, "my_videos")
    write_video(workplace / "new_videos" / "a.mp4", (220, 30, 30))
    small = [*SMALL, "--trainer.logger=false"]
    for words in commands()[2:5]:
        sizes = ["--data.clip_length=8", "--data.num_workers=0", "--trainer.enable_progress_bar=false"]
        extra = [*small, "--trainer.max_epochs=1"] if words[0] == "fit" else []
        assert main([*words, *sizes, *extra, "--trainer.accelerator=cpu"]) == 0
    assert len(list(workplace.glob("runs/r2plus1d_bert/predict-*/predictions.csv"))) == 1
    write_video(workplace / "long_videos" / "b.mp4", (220, 30, 30), num_frames=40)
    for name in ("classify", "explain", "scan"):
        assert main(command(name)) == 0
    written = {
        "long_videos",
        "segments.csv",
        "b.timeline.png",
        "b.scanned.mp4",
        "results.csv",
        "a.labelled.mp4",
        *(f"a.explained.{kind}" for kind in ("png", "mp4", "html")),
    }
    assert {path.name for path in workplace.iterdir()} == {"my_videos", "new_videos", "runs", *written}


def test_several_gpus_and_machines(workplace, capsys, monkeypatch):
    """The options are there and the devices are what they say; tests/test_distributed.py has the processes."""
    section = README.split("## Several GPUs")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if "cnnbert fit --config" in line]
    for line in lines:
        before, words = line.split("cnnbert fit ")
        with pytest.raises(SystemExit) as stop:
            main(["fit", *shlex.split(words), "--print_config"])
        assert stop.value.code == 0
        assert yaml.safe_load(capsys.readouterr().out)["trainer"]["devices"] == "2"
        if before.startswith("torchrun"):
            launched = torch.distributed.run.parse_args([*shlex.split(before)[1:], "cnnbert"])
            assert (launched.nnodes, launched.nproc_per_node, launched.module) == ("2", "2", True)
    assert len(lines) == 3
    for options in re.findall(r"`(--(?:trainer|data)\.[^`]*)`", section):
        with pytest.raises(SystemExit) as stop:
            main(["fit", *shlex.split(options), "--print_config"])
        assert stop.value.code == 0


def test_preview(workplace, videos):
    shutil.copytree(videos, "my_videos")
    assert main([*command("preview"), *TINY_DATA]) == 0
    assert Path("preview.png").is_file()


def test_other_options_that_it_names(workplace, videos):
    lines = [f"{path},{path.parent.name}" for path in sorted(videos.rglob("*.mp4"))]
    Path("my_videos.csv").write_text("path,label\n" + "\n".join(lines))
    csv_options, _ = re.findall(r"`(--data data/csv.yaml [^`]*)`", README)
    (logger,) = re.findall(r"`(--trainer.logger null)`", README)
    options = [*shlex.split(csv_options), *shlex.split(logger), *SMALL, *TINY_DATA, *TINY_RUN]
    assert main(["fit", "--config=r2plus1d_bert.yaml", *options]) == 0
    assert len(list(workplace.glob("runs/r2plus1d_bert/fit-*/metrics.csv"))) == 1


def test_summary(capsys):
    assert main(command("summary")) == 0
    assert "52,465,139" in capsys.readouterr().out


def test_check(workplace, videos, capsys):
    shutil.copytree(videos, "my_videos")
    assert main(command("check")) == 0
    assert capsys.readouterr().out.endswith("27 of 27 videos are fine\n")
    assert Path("check.csv").read_text().startswith("path,verdict,why,")
    rows = re.findall(
        r"^\| (`\w+`(?:, `\w+`)*) \|", README.split("## Getting videos")[1].split("## Pub")[0], re.MULTILINE
    )
    assert re.findall(r"`(\w+)`", "".join(rows)) == list(VERDICTS)


def test_report(workplace, capsys):
    words = command("report")
    for path in (Path(words[1]), Path(words[3])):
        write_predictions(path, "ab", [("1.mp4", "a", "a", [0.7, 0.3]), ("2.mp4", "b", "a", [0.6, 0.4])])
    assert main(words) == 0
    assert capsys.readouterr().out.startswith("report.html: 2 videos")


def test_prepare(workplace, videos, capsys):
    shutil.copytree(videos, "my_videos")
    assert main(command("prepare")) == 0
    assert capsys.readouterr().out.endswith("27 of 27 videos are listed in prepared/videos.csv\n")
    (options,) = re.findall(r"`(--data data/csv.yaml --data.source.path prepared[^`]*)`", README)
    assert main(["check", *shlex.split(options)]) == 0


def test_flow(workplace, videos, capsys):
    shutil.copytree(videos, "my_videos")
    shutil.copytree(videos / "test" / "red", "new_videos")
    assert main(command("flow")) == 0
    (fit,) = (words for words in commands() if "data/flow.yaml" in words)
    small = [*SMALL, *TINY_DATA, *TINY_RUN, "--trainer.logger=false"]
    assert main([*fit, *small]) == 0
    (fit,) = (words for words in commands() if "two_stream_bert.yaml" in words)
    (concat,) = re.findall(r"`(--model.backbone.fusion concat)`", README)
    own = re.findall(r"`(--model\.backbone\.(?:rgb|flow)\.weights)`", README)
    sizes = [word.replace("backbone", f"backbone.{name}") for name in ("rgb", "flow") for word in SMALL[:2]]
    sizes += [f"{option}=null" for option in own]
    assert len(own) == 2 and main([*fit, *sizes, *small[len(SMALL) :], *shlex.split(concat)]) == 0
    (again,) = re.findall(r"`cnnbert (flow new_videos [^`]*)`", README)
    capsys.readouterr()
    assert main(shlex.split(again)) == 0
    assert capsys.readouterr().out.endswith("3 of 3 videos have their flow in flow (farneback, bound 20)\n")
    (options,) = re.findall(r"`(--data.reader FlowReader [^`]*)`", README)
    (flaw,) = re.findall(r"`(--data.unnegated_flow true)`", README)
    source = ["--data=data/folder.yaml", "--data.source.root=my_videos"]
    assert main(["preview", *source, *shlex.split(f"{options} {flaw}"), *TINY_DATA]) == 0


def test_fuse(workplace, videos, capsys):
    """The tests and validations are those of two networks on the same videos, as it says; the shell's work is done."""
    shutil.copytree(videos, "my_videos")
    assert main(["flow", "my_videos", "--out=flow", "--method=farneback"]) == 0
    fits = [words for words in commands() if words[0] == "fit" and "r2plus1d" in words[2] and len(words) < 9]
    assert len(fits) == 2
    for fit in fits:
        assert main([*fit, *SMALL, *TINY_DATA, *TINY_RUN, "--trainer.logger=false"]) == 0
        for judge in ("validate", "test"):
            assert main([judge, "--ckpt_path=best", "--trainer.logger=false"]) == 0
    words = [[str(path) for path in sorted(workplace.glob(word))] or [word] for word in command("fuse")]
    assert main([path for paths in words for path in paths]) == 0
    assert "videos fused into fused.csv, weights chosen on" in capsys.readouterr().out


def test_clips(workplace, videos, capsys):
    shutil.copytree(videos / "train", "long_videos")
    assert main([*command("clips"), "--min-seconds=0"]) == 0
    assert capsys.readouterr().out.endswith("12 clips of 12 of 12 videos, listed in clips.csv\n")
    assert main(["check", "clips.csv"]) == 0


def test_bench_data(workplace, videos, capsys):
    shutil.copytree(videos, "my_videos")
    assert main([*command("bench-data"), *TINY_DATA, "--num-batches=1", "--num-videos=2"]) == 0
    assert "clips/s" in capsys.readouterr().out


def test_import_checkpoint(workplace):
    (config,) = (word for word in command("import-checkpoint") if word.endswith(".yaml"))
    small_config(config, workplace)  # a config here wins over the shipped one
    write_checkpoint(workplace / "model_best.pth.tar", ltm_network.random_state(small(config)))
    write_names(workplace / "names.txt", small(config).classes)
    assert main(command("import-checkpoint")) == 0
    assert cnnbert.load("model.ckpt").class_names == ["class 0", "class 1", "class 2"]


def test_export(workplace, videos, capsys, monkeypatch):
    source = ["--data=data/folder.yaml", f"--data.source.root={videos}", "--trainer.logger=false"]
    assert main(["fit", *source, *TINY_MODEL, *TINY_DATA, *TINY_RUN]) == 0
    assert main(command("export")) == 0
    (options,) = re.findall(r"`(--format torch-export[^`]*)`", README)
    assert main(["export", "best", *shlex.split(options)]) == 0
    (example,) = re.findall(r"`python (docs/\S+ [^`]*)`", README)
    script, *arguments = shlex.split(example)
    shutil.copy(videos / "test" / "red" / "1.mp4", arguments[1])
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", [script, *arguments])
    run_path(str(ROOT / script))
    assert {line.split()[1] for line in capsys.readouterr().out.splitlines()} == {"blue", "green", "red"}


def test_heads_on_features(workplace, videos):
    shutil.copytree(videos, "my_videos")
    small_config("r2plus1d_tgap.yaml", workplace)
    sizes = [*TINY_DATA, "--model.backbone.weights=null", "--trainer.logger=false"]
    assert main([*command("features"), *sizes]) == 0
    (ablation,) = (words for words in commands() if words[:2] == ["ablate", "--features"])
    assert main([*ablation, "--seeds=1", "--trainer.max_epochs=1"]) == 0
    assert "| EfficientBERTHead | TGAPHead |" in Path("heads/table.md").read_text()


def test_ablate(workplace, videos, monkeypatch):
    """In this process, and with one seed of small networks; tests/test_ablate.py has more."""
    monkeypatch.setattr(
        ablation_runs, "_process", lambda command, place, group, lock: "" if main(command) == 0 else "failed"
    )
    shutil.copytree(videos, "my_videos")
    more = ["--data.clip_length=16", "--model.backbone.weights=null", "--trainer.logger=false"]
    for row in ablate.ROWS:
        small_config(row, workplace)
    (ablation,) = (words for words in commands() if words[:2] == ["ablate", "--data"])
    assert main([*ablation, "--seeds=1", *TINY_DATA, *TINY_RUN, *more]) == 0
    table = Path("ablation/table.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in table] == [
        "network",
        *(row.removesuffix(".yaml") for row in ablate.ROWS),
    ]


def test_splits(workplace, videos, capsys, monkeypatch):
    """In this process, which spares six starts; tests/test_folds.py has the real ones."""
    monkeypatch.setattr(folds, "_run", main)
    splits = [("train", "test", "test"), ("test", "train", "test"), ("test", "test", "train")]
    lines = [
        f"{path},{path.parent.name},{','.join(splits[number % 3])}"
        for folder in sorted((videos / "train").iterdir())
        for number, path in enumerate(sorted(folder.glob("*.mp4")) * 6)
    ]
    Path("my_splits.csv").write_text("path,label,split1,split2,split3\n" + "\n".join(lines))
    small = [*SMALL, *TINY_DATA, *TINY_RUN, "--trainer.logger=false"]
    assert main([*command("splits"), *small]) == 0
    assert "protocol all_clips_10_crops" in capsys.readouterr().out
    assert len(list(workplace.glob("runs/r2plus1d_bert/splits-*/splits.csv"))) == 1


def test_protocols_and_weights():
    protocols = README.split("test_protocol` chooses")[1].split("UCF101")[0]
    named = re.findall(r"^\| `(\w+)` ", protocols, re.MULTILINE)
    assert named == list(get_args(get_type_hints(VideoDataModule.__init__)["test_protocol"])) == list(PROTOCOLS)
    weights = README.split("or a name:")[1].split("What a file holds")[0]
    named = set(re.findall(r"`(\w+)`", weights)) - {"KINETICS400_V1", "IMAGENET1K_V1"}
    assert named <= set(PUBLISHED)
    assert {PUBLISHED[name].network.partition("(")[0] for name in named} == {
        published.network.partition("(")[0] for published in PUBLISHED.values()
    }


def test_python(monkeypatch):
    (code,) = blocks("python")
    loaded = cnnbert.build("quickstart.yaml", ["run", "walk"])
    monkeypatch.setattr(loaded, "classify", lambda path, top_k: {"run": 0.9, "walk": 0.1})
    monkeypatch.setattr(cnnbert, "load", lambda path: loaded, raising=False)
    values = {"clips": torch.zeros(1, 3, 16, 56, 56, dtype=torch.uint8), "features": torch.zeros(1, 512, 4, 7, 7)}
    exec(code, values)
    assert values["logits"].shape == (1, 13)


def test_sizes_of_networks():
    rows = re.findall(r"^\| `(\w+\.yaml)` .*?\| ([\d,]+) \| ([\d.]+) G \|", README, re.MULTILINE)
    assert len(rows) > 20
    for name, parameters, multiply_adds in rows:
        size = network_size(name)
        assert f"{size.parameters:,} {size.multiply_adds / 1e9:.1f}" == f"{parameters} {multiply_adds}"


def test_small_accuracies_are_those_of_the_results():
    told = dict(re.findall(r"^\| `(\w+)\.yaml` .* G \| ([\d.]+) \|$", README, re.MULTILINE))
    section = (
        (ROOT / "docs" / "results.md").read_text().split("## Every system from random weights")[1].split("\n## ")[0]
    )
    measured = dict(re.findall(r"^\| (\w+) \| ([\d.]+) \|", section, re.MULTILINE))
    assert len(told) > 15 and told.items() <= measured.items()


def test_file_tree():
    tree = README.split("## Files")[1].split("```")[1]
    named = set(re.findall(r"\b\w+\.py\b", tree))
    there = {path.name for path in (ROOT / "cnnbert").rglob("*.py")} - {"__init__.py", "__main__.py"}
    assert named == there
    rows = [name for name in shipped_configs() if "/" not in name]
    assert set(rows) == set(re.findall(r"^\| `(\w+\.yaml)`", README, re.MULTILINE))


@pytest.mark.slow
def test_quickstart(workplace, capsys):
    for command in commands()[:2]:
        assert main(command) == 0
    accuracy = float(re.findall(r"test: .*?\n  video top-1 +([\d.]+)", capsys.readouterr().out)[-1])
    assert accuracy >= 0.80
