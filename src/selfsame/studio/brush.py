"""Edits by the official MimicBrush weights: the same editor as the miniature's, at 512 pixels."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from accelerate import init_empty_weights
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

from selfsame.images.files import InputError, folder_written_whole, read_json
from selfsame.methods.mimicbrush.checkpoint import depth_anything_from_official, load_strictly, mimicbrush_from_official
from selfsame.methods.mimicbrush.method import MimicBrush
from selfsame.methods.mimicbrush.modules import FUSIONS, DepthProjector, ImageProjector, ReferenceNet
from selfsame.methods.mimicbrush.pictures import clip_pixels, depth_pixels
from selfsame.models.latents import pictures_of
from selfsame.perception.stock import read_stock
from selfsame.studio.edits import Editor
from selfsame.studio.painting import scheduler_of
from selfsame.studio.request import Limits
from selfsame.weights.official import read_official, read_whole, variant_of

BRUSH, VAE, TOWER, DEPTH = "mimicbrush/mimicbrush.bin", "sd-vae-ft-mse", "image_encoder", "depth_model/depth_anything_vitb14.pth"
UNET = {  # Stable Diffusion 1.5, both nets
    "sample_size": 64, "out_channels": 4, "block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2, "cross_attention_dim": 768,
    "attention_head_dim": 8, "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}  # fmt: skip
DEPTH_ANYTHING = {  # v1, ViT-B
    "backbone": {
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 518, "patch_size": 14, "out_indices": [9, 10, 11, 12],
        "apply_layernorm": True, "reshape_hidden_states": False,
    },
    "reassemble_hidden_size": 768, "patch_size": 14, "neck_hidden_sizes": [96, 192, 384, 768], "fusion_hidden_size": 128, "head_hidden_size": 32,
    "head_in_index": -1,
}  # fmt: skip
SCHEDULE = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "epsilon",
    "steps_offset": 1, "set_alpha_to_one": False, "timestep_spacing": "leading",
}  # fmt: skip
# The same laid out as diffusers and transformers save their models, by `BrushEditor.save`: all of it safetensors.
STOCK_UNET, STOCK_REFERENCE, STOCK_DEPTH, STOCK_VAE, PROJECTORS = "unet", "reference_unet", "depth", "vae", "projectors.safetensors"
WEIGHTS = "diffusion_pytorch_model.safetensors"
ABOUT = "selfsame.json"  # beside one's own weights: how the reference is heard
CONFIG = "config.json"  # beside a file of another size: what its networks are made with


def stock_part(kind: Any, folder: Path) -> Any:
    """A diffusers model from its own folder, in full precision.

    Raises:
        InputError: it cannot be loaded, or not whole.
    """
    return read_whole(kind, folder, f"the {folder.name}", torch_dtype=torch.float32, **variant_of(folder))


class BrushStudio:
    """VAE and schedule of the official weights, as the editor needs them."""

    def __init__(self, vae_folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        self.vae_folder, self.device, self.dtype = vae_folder, device, dtype

    @cached_property
    def vae(self) -> Any:
        return stock_part(AutoencoderKL, self.vae_folder).to(self.device)

    def scheduler(self, solver: str) -> Any:
        """A fresh solver; officially ddim."""
        return scheduler_of(SCHEDULE, solver)

    def decode(self, latents: Tensor) -> list[np.ndarray]:
        """Latents b c h w to pictures h w 3 uint8."""
        return pictures_of(self.vae, latents)


class BrushEditor(Editor):
    """Repainting by the official weights: things and textures; people belong to InstantID."""

    limits = Limits(512, 8, 512, 50, 5.0, context=1.8)  # the official demo's steps and guidance
    guides_shape = False  # officially both rows are told the depth
    together, kept_references = 2, 1  # features of one reference over 50 steps: 0.7 GB in half precision

    def __init__(self, folder: str | Path, *, device: str = "cpu", dtype: torch.dtype | None = None) -> None:
        """
        Args:
            folder: of the official layout: `mimicbrush/mimicbrush.bin`, `sd-vae-ft-mse/`, `image_encoder/`, `depth_model/`; or what `save` wrote.
            dtype: of both U-Nets and the image tower; by default half precision on a GPU. VAE and depth stay in full precision.

        Raises:
            InputError: a file is missing.
        """
        self.folder, where = Path(folder), torch.device(device)
        self.is_stock = (self.folder / STOCK_UNET).is_dir()
        parts = (STOCK_UNET, STOCK_REFERENCE, STOCK_DEPTH, STOCK_VAE, TOWER, PROJECTORS) if self.is_stock else (BRUSH, VAE, f"{TOWER}/{CONFIG}", DEPTH)
        absent = [name for name in parts if not (self.folder / name).exists()]
        if absent:
            raise InputError(f"{self.folder}: lacks {', '.join(absent)}; fetch it with `selfsame models fetch mimicbrush`")
        self.dtype = dtype or (torch.float32 if where.type == "cpu" else torch.float16)
        super().__init__(BrushStudio(self.folder / (STOCK_VAE if self.is_stock else VAE), where, self.dtype))
        config = read_json(self.folder / STOCK_UNET / CONFIG) if self.is_stock else self._config(BRUSH, UNET)
        self.side = 8 * int(config["sample_size"])

    @classmethod
    def of_parts(cls, studio: BrushStudio, method: MimicBrush, tower: Any, depth_net: Any, side: int) -> BrushEditor:
        """Of networks that are loaded already: how training looks at itself."""
        made = cls.__new__(cls)
        Editor.__init__(made, studio)
        made.folder, made.is_stock, made.dtype, made.side = Path(), True, studio.dtype, side
        vars(made).update({"_loaded": (method, tower), "depth_net": depth_net})
        return made

    def _config(self, file: str, usual: dict[str, Any]) -> dict[str, Any]:
        path = (self.folder / file).parent / CONFIG
        return usual | read_json(path) if path.is_file() else usual

    @cached_property
    def _loaded(self) -> tuple[MimicBrush, Any]:
        """Both U-Nets, the projectors and the image tower."""
        method, tower = self._from_stock() if self.is_stock else self._from_official()
        device = self.studio.device
        return method.to(device, self.dtype).eval().requires_grad_(False), tower.to(device, self.dtype).eval().requires_grad_(False)

    def _from_stock(self) -> tuple[MimicBrush, Any]:
        tower = read_stock(CLIPVisionModelWithProjection, self.folder / TOWER, "the image tower", ("clip_vision_model",))
        imitative = stock_part(UNet2DConditionModel, self.folder / STOCK_UNET)
        config: dict[str, Any] = read_json(self.folder / STOCK_REFERENCE / CONFIG)
        with init_empty_weights(include_buffers=False):
            reference = UNet2DConditionModel(**{k: v for k, v in config.items() if not k.startswith("_")})
            projector = ImageProjector(tower.config.hidden_size, imitative.config.cross_attention_dim)
            fusion = read_json(self.folder / ABOUT).get("fusion", "mean") if (self.folder / ABOUT).is_file() else "mean"
            if fusion not in get_args(FUSIONS):
                raise InputError(f"{self.folder / ABOUT}: fusion {fusion!r}, known are {', '.join(get_args(FUSIONS))}")
            method = MimicBrush(imitative, ReferenceNet(reference), projector, DepthProjector(int(reference.config["in_channels"])), fusion)
        values = read_official(self.folder / PROJECTORS, "MimicBrush's projectors")
        try:
            load_strictly(method.reference_net.unet, read_official(self.folder / STOCK_REFERENCE / WEIGHTS, "the reference net"), STOCK_REFERENCE)
            for name in ("image_projector", "depth_projector"):
                load_strictly(getattr(method, name), {k.removeprefix(f"{name}."): v for k, v in values.items() if k.startswith(f"{name}.")}, name)
        except ValueError as error:
            raise InputError(f"{self.folder}: {error}") from None
        return method, tower

    def _from_official(self) -> tuple[MimicBrush, Any]:
        values = read_official(self.folder / BRUSH, "MimicBrush's checkpoint")
        config: dict[str, Any] = self._config(BRUSH, UNET)
        tower_config: Any = CLIPVisionConfig.from_pretrained(self.folder / TOWER, local_files_only=True)
        with init_empty_weights(include_buffers=False):  # nothing is drawn at random that would be overwritten
            imitative, reference = (UNet2DConditionModel(**config, in_channels=n) for n in (13, 4))
            parts = (ReferenceNet(reference), ImageProjector(tower_config.hidden_size, config["cross_attention_dim"]), DepthProjector())
            method, tower = MimicBrush(imitative, *parts), CLIPVisionModelWithProjection(tower_config)
        try:
            mimicbrush_from_official(values, method, tower)
        except ValueError as error:
            raise InputError(f"{self.folder / BRUSH}: {error}") from None
        return method, tower

    def save(self, folder: Path) -> Path:
        """All parts as diffusers and transformers save them, in the precision that they were loaded in; the folder is whole or not there.

        The reference net ends at its last norm that is read, so diffusers warns that its U-Net lacks the rest.

        Raises:
            InputError: something is there already.
        """
        if folder.exists():
            raise InputError(f"{folder}: exists already; choose another folder")
        with folder_written_whole(folder) as partial:
            for model, name in (
                (self.method.unet, STOCK_UNET), (self.method.reference_net.unet, STOCK_REFERENCE), (self.image_encoder, TOWER),
                (self.studio.vae, STOCK_VAE), (self.depth_net, STOCK_DEPTH),
            ):  # fmt: skip
                model.save_pretrained(partial / name, max_shard_size="100GB")
            parts = {name: getattr(self.method, name).state_dict() for name in ("image_projector", "depth_projector")}
            values = {f"{name}.{k}": v.contiguous() for name, state in parts.items() for k, v in state.items()}
            save_file(values, partial / PROJECTORS, metadata={"format": "pt"})
            (partial / ABOUT).write_text(json.dumps({"fusion": self.method.fusion}) + "\n")
        return folder

    @property
    def method(self) -> MimicBrush:
        return self._loaded[0]

    @property
    def image_encoder(self) -> Any:
        return self._loaded[1]

    @cached_property
    def depth_net(self) -> Any:
        if self.is_stock:
            return read_stock(DepthAnythingForDepthEstimation, self.folder / STOCK_DEPTH, "the depth network", ("depth_anything",)).to(self.studio.device)
        about = dict(self._config(DEPTH, DEPTH_ANYTHING))
        with init_empty_weights(include_buffers=False):
            net = DepthAnythingForDepthEstimation(DepthAnythingConfig(backbone_config=Dinov2Config(**about.pop("backbone")), **about))
        try:
            load_strictly(net, depth_anything_from_official(read_official(self.folder / DEPTH, "Depth Anything's file")), "depth_anything")
        except ValueError as error:
            raise InputError(f"{self.folder / DEPTH}: {error}") from None
        return net.to(self.studio.device).eval().requires_grad_(False)  # type: ignore[arg-type]

    def clip_pixels(self, square: np.ndarray) -> Tensor:
        return clip_pixels(square, self.image_encoder.config.image_size).to(self.studio.device)

    @torch.no_grad()
    def _depth_of(self, pixels: Tensor) -> Tensor:
        return self.depth_net(pixels.to(self.studio.device)).predicted_depth[:, None]

    def depth(self, square: np.ndarray) -> Tensor:
        return self._depth_of(depth_pixels(square))

    @cached_property
    def no_depth(self) -> Tensor:
        """A free shape is the depth that the network sees in a picture of zeros, not a depth of zero."""
        return self._depth_of(torch.zeros_like(depth_pixels(np.zeros((self.side, self.side, 3), np.uint8))))
