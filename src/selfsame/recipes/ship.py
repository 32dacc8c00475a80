"""Put a trained model into the package, with its hash and where it came from."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from peft import get_peft_model_state_dict
from torch import nn

from selfsame.images.files import read_json
from selfsame.mannequins.world import WORLD_VERSION
from selfsame.models.mannequin import new_scheduler
from selfsame.recipes.common import Trained
from selfsame.recipes.revision import revision
from selfsame.training.processes import stoppable
from selfsame.weights.mannequin import FOLDER, MANIFEST, install, manifest, note, ship

# Under which names results lie that are no file of their recipe's name.
NAMES = {"vae": "base/vae", "decoder": "base/vae", "clip": "clip_image.safetensors", "base": "base/unet", "instantid": "instantid", "mimicbrush": "mimicbrush"}


def run_of(folder: Path) -> str:
    """A run's mark, the same however often it goes on: what it logged first."""
    first = (folder / "log.csv").read_text().splitlines()[1].split(",")
    return hashlib.sha256(",".join(first[:4]).encode()).hexdigest()[:12]


def provenance(trained: Trained, name: str, known: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What a user may want to know of shipped weights.

    Args:
        name: of the file or folder.
        known: the same of all that are installed: a warm run's samples come on top of those that the weights had seen before it.
    """
    run, warm, earlier = run_of(trained.folder), bool(read_json(trained.folder / "run.json").get("warm")), known.get(name, {})
    before = earlier.get("before" if earlier.get("run") == run else "samples", 0) if warm else 0
    return {
        "world": WORLD_VERSION,
        "samples": before + trained.samples,
        "before": before,
        "run": run,
        "figures": {k: round(v, 4) for k, v in trained.figures.items()},
        "commit": revision(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def _without_paths(path: Path) -> None:
    """A stock config without what belongs to this machine and this run: where the model was loaded from, its precision in memory."""
    config = json.loads(path.read_text())
    config.pop("_name_or_path", None)
    if "dtype" in config:  # transformers would load in half precision by itself, and a stock pipeline would mix precisions
        config["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _save_stock(model: Any, sub: str, about: dict[str, Any], folder: Path) -> None:
    """A diffusers or transformers model in half precision, as its own save_pretrained lays it out."""
    target = folder / sub
    half = copy.deepcopy(model).half()
    half.save_pretrained(target)
    _without_paths(target / "config.json")
    note(sub, about, folder)


def ship_trained(name: str, trained: Trained, folder: Path = FOLDER) -> None:
    """Install a recipe's result under its fixed name: all of its files and their hashes, or none.

    Raises:
        ValueError: no model of that name ships.
    """
    staged = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        staged.mkdir(parents=True)
        _write(name, trained, staged, manifest(folder)["provenance"] if (folder / MANIFEST).exists() else {})
        with stoppable():  # Ctrl-C waits until files and hashes agree
            install(staged, folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _write(name: str, trained: Trained, folder: Path, known: Mapping[str, Mapping[str, Any]]) -> None:
    about, module = provenance(trained, NAMES.get(name, f"{name}.safetensors"), known), trained.module
    if name in ("encoder", "judge", "face_vit"):
        assert isinstance(module.net, nn.Module)
        ship(module.net.state_dict(), f"{name}.safetensors", about, folder)
    elif name == "words":
        ship(module.words[0].state_dict(), "words.safetensors", about, folder)  # type: ignore[index]
    elif name in ("detector", "reader", "parser", "depth"):
        ship(module.state_dict(), f"{name}.safetensors", about, folder)
    elif name in ("vae", "decoder"):
        _save_stock(module.vae, "base/vae", about, folder)
    elif name == "clip":
        _save_stock(module.text, "base/text_encoder", about, folder)
        # tokenizer.json says again what vocabulary and merges say, in as many bytes as a small model has.
        shutil.copytree(trained.folder / "tokenizer", folder / "base/tokenizer", dirs_exist_ok=True, ignore=shutil.ignore_patterns("tokenizer.json"))
        note("base/tokenizer", {}, folder)
        assert isinstance(module.image, nn.Module)
        assert isinstance(module.text_projection, nn.Module)
        values = {f"image.{k}": v for k, v in module.image.state_dict().items()}
        values |= {f"text_projection.{k}": v for k, v in module.text_projection.state_dict().items()}
        ship(values, "clip_image.safetensors", about, folder)
    elif name == "base":
        _save_stock(module.unet, "base/unet", about, folder)
        new_scheduler().save_pretrained(folder / "base/scheduler")
        note("base/scheduler", {}, folder)
        write_model_index(folder / "base")
    elif name == "instantid":
        module.method.save_pretrained(folder / "instantid", half=True)  # type: ignore[union-attr, operator]
        _without_paths(folder / "instantid/ControlNetModel/config.json")
        note("instantid", about, folder)
    elif name == "turbo":
        values = get_peft_model_state_dict(module.unet)  # type: ignore[arg-type]
        ship({f"unet.{k}": v for k, v in values.items()}, f"{name}.safetensors", about, folder)
    elif name == "mimicbrush":
        module.method.save_pretrained(folder / "mimicbrush", half=True)  # type: ignore[union-attr, operator]
        _without_paths(folder / "mimicbrush/unet/config.json")
        note("mimicbrush", about, folder)
    else:
        raise ValueError(f"no shipped model is called {name!r}")


def write_model_index(folder: Path) -> None:
    """What stock `StableDiffusionPipeline.from_pretrained` reads first."""
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.42.0",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
