"""MimicBrush as one object: the imitative and the reference U-Net, what they are told, and one prediction of both."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from selfsame.adapters.processors import CrossAttention, cross_attention_paths, processors_replaced
from selfsame.methods.mimicbrush.modules import FUSIONS, DepthProjector, ImageProjector, ReferenceAttention, ReferenceNet, fused_paths
from selfsame.values.conditioning import Conditioning, ReferenceCondition

FILE = "parts.safetensors"


def widened(unet: UNet2DConditionModel, in_channels: int) -> UNet2DConditionModel:
    """A copy of a U-Net that takes more channels after its own; at first it does not listen to them."""
    config: dict[str, Any] = {k: v for k, v in unet.config.items() if not k.startswith("_")}
    made = UNet2DConditionModel(**{**config, "in_channels": in_channels})
    values = unet.state_dict()
    wide = torch.zeros_like(made.conv_in.weight)
    wide[:, : unet.conv_in.in_channels] = unet.conv_in.weight.detach()
    made.load_state_dict(values | {"conv_in.weight": wide})
    return made


def _hash_of(unet: UNet2DConditionModel) -> str:
    """Short hash of a U-Net's weights, the same in single and half precision."""
    digest = hashlib.sha256()
    for value in unet.state_dict().values():
        digest.update(value.detach().half().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


class MimicBrush(nn.Module):
    """All that the official checkpoint holds but the CLIP image tower."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        reference_net: ReferenceNet,
        image_projector: ImageProjector,
        depth_projector: DepthProjector,
        fusion: FUSIONS = "mean",
    ) -> None:
        super().__init__()
        self.fusion: FUSIONS = fusion  # what the weights were trained with, and what follows too
        self.use_net = self.use_tokens = True
        self.pooled = False  # whether of CLIP's tokens the first alone is told
        self.reference_timestep: int | None = None  # at which the reference net looks; None: the picture's own, officially
        self.base = ""  # which base a reference net of low-rank additions stands on
        self.unet, self.reference_net = unet, reference_net
        self.image_projector, self.depth_projector = image_projector, depth_projector

    @classmethod
    def from_base(cls, unet: UNet2DConditionModel, image_width: int, *, lora_rank: int = 0, fusion: FUSIONS = "concat") -> MimicBrush:
        """A new one on a base: both U-Nets start as the base, the projectors at random.

        Args:
            image_width: of CLIP's states.
            lora_rank: above 0 the reference net is the base with low-rank additions that learn, else all of it learns.
        """
        channels = int(unet.config["in_channels"])
        reference = ReferenceNet(copy.deepcopy(unet))
        if lora_rank:
            reference.add_lora(lora_rank)
        context = int(unet.config["cross_attention_dim"])
        made = cls(widened(unet, 3 * channels + 1), reference, ImageProjector(image_width, context), DepthProjector(channels), fusion)
        made.base = _hash_of(unet) if lora_rank else ""
        return made

    def trainable(self) -> MimicBrush:
        """Everything that is used learns, but of a reference net with LoRA the additions alone."""
        self.requires_grad_(True)
        is_low_rank = bool(self.reference_net.lora_state())
        for name, p in self.reference_net.named_parameters():
            p.requires_grad_(self.use_net and (not is_low_rank or ".lora_" in name))
        return self

    def save_pretrained(self, folder: str | Path, *, half: bool = False) -> None:
        """`unet/` as diffusers lays it out, one file of the other parts, and what they are; a reference net with LoRA is saved as its additions alone."""
        folder = Path(folder)
        made = copy.deepcopy(self.unet).half() if half else self.unet
        made.save_pretrained(folder / "unet")
        lora = self.reference_net.lora_state()
        parts = {"reference_net": lora or self.reference_net.unet.state_dict()}
        parts |= {"image_projector": self.image_projector.state_dict(), "depth_projector": self.depth_projector.state_dict()}
        values = {f"{part}.{k}": (v.half() if half else v).contiguous() for part, state in parts.items() for k, v in state.items()}
        rank = next((v.shape[0] for k, v in lora.items() if ".lora_A." in k), 0)
        save_file(values, folder / FILE, metadata={"format": "pt"})
        about = {"image_width": self.image_projector.projector.in_features, "lora_rank": rank, "fusion": self.fusion}
        about |= {"use_net": self.use_net, "use_tokens": self.use_tokens, "pooled": self.pooled, "base": self.base}
        about |= {"reference_timestep": self.reference_timestep}
        (folder / "config.json").write_text(json.dumps(about, indent=1) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path, base: UNet2DConditionModel, *, to_train: bool = False) -> MimicBrush:
        """Load what `save_pretrained` wrote.

        Args:
            base: the U-Net it was trained from; of a reference net with LoRA it gives the weights.
            to_train: it shall be trained on, so another base will do: a reference net's additions move to this one.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: weights do not fit.
        """
        folder = Path(folder)
        about = json.loads((folder / "config.json").read_text())
        method = cls.from_base(base, about["image_width"], lora_rank=about["lora_rank"], fusion=about["fusion"])
        if about.get("base", method.base) != method.base and not to_train:
            raise ValueError(f"{folder}: its reference net is the base it was trained on with additions, and this is another base: train it anew on this one")
        method.use_net, method.use_tokens = about.get("use_net", True), about.get("use_tokens", True)
        method.pooled, method.reference_timestep = about.get("pooled", False), about.get("reference_timestep")
        method.unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
        values = load_file(folder / FILE)
        own = {"reference_net": method.reference_net.unet, "image_projector": method.image_projector, "depth_projector": method.depth_projector}
        for part, module in own.items():
            mine = {k.removeprefix(f"{part}."): v.float() for k, v in values.items() if k.startswith(f"{part}.")}
            needed = set(method.reference_net.lora_state() or module.state_dict()) if part == "reference_net" else set(module.state_dict())
            if needed != set(mine):
                raise ValueError(f"{folder / FILE}: {part} does not fit, {sorted(needed ^ set(mine))[:3]} differ")
            module.load_state_dict(mine, strict=False)
        return method.eval()

    @contextmanager
    def attached(self, fusion: FUSIONS | None = None, *, keeps: bool = False) -> Iterator[UNet2DConditionModel]:
        """The imitative U-Net with attention that borrows; detached it is a plain U-Net again.

        Args:
            keeps: keys and values of image tokens that come again, step after step, are made once, in both nets.
        """
        borrows: dict[str, Any] = {f"{path}.attn1": ReferenceAttention(path, fusion or self.fusion) for path in fused_paths(self.unet)}
        if not keeps:
            with processors_replaced(self.unet, borrows):
                yield self.unet
            return
        ours, theirs = ({path: CrossAttention(keeps=True) for path in cross_attention_paths(net)} for net in (self.unet, self.reference_net.unet))
        with processors_replaced(self.unet, borrows | ours), processors_replaced(self.reference_net.unet, theirs):
            yield self.unet

    def tokens(self, states: Tensor) -> Tensor:
        """CLIP's second-to-last states b t k -> what both nets are told, b t d."""
        return self.image_projector(states[:, :1] if self.pooled else states)

    def image_tokens(self, image_encoder: Any, clip_pixels: Tensor) -> Tensor:
        """CLIP pixels b 3 224 224 -> tokens b t d. "No image" is zero pixels, not zero tokens."""
        return self.tokens(image_encoder(clip_pixels, output_hidden_states=True).hidden_states[-2])

    def depth_feature(self, depth: Tensor, latents: Tensor) -> Tensor:
        """Depth maps b 1 H W -> b c h w at the latents' size."""
        return self.depth_projector(depth, *latents.shape[-2:])


def inpaint_channels(mask: Tensor, collage: Tensor, depth_feature: Tensor) -> Tensor:
    """What follows the noisy latents, in the official order: mask b 1 h w, collage latents b c h w, depth feature b c h w."""
    return torch.cat([mask, collage, depth_feature], 1)


class Reference:
    """References of one picture or several, with features computed once a timestep and kept.

    Features depend on the reference latents, the image tokens and t alone: never on source, mask or seed. Kept, they serve any
    number of pictures exactly; at 512 pixels those of a timestep take 14 MB in half precision.

    Args:
        looks_at: the timestep at which the net always looks; None: the picture's own.
    """

    def __init__(self, net: ReferenceNet, latents: Tensor, image_tokens: Tensor, looks_at: int | None = None) -> None:
        self.net, self.latents, self.image_tokens, self.looks_at = net, latents, image_tokens, looks_at
        self.kept: dict[int, Mapping[str, Tensor]] = {}

    @torch.no_grad()
    def at(self, timestep: Tensor | int) -> Mapping[str, Tensor]:
        """Features of all references at a timestep."""
        t = int(timestep) if self.looks_at is None else self.looks_at
        if t not in self.kept:
            self.kept[t] = self.net(self.latents, torch.tensor(t, device=self.latents.device), self.image_tokens)
        return self.kept[t]

    def condition(self, timestep: Tensor | int, rows: Tensor) -> ReferenceCondition:
        """For rows b that borrow from reference rows[i], or from none where it is -1."""
        return ReferenceCondition(self.at(timestep), rows)


def merged(references: Sequence[Reference], timestep: Tensor | int, rows: Tensor) -> ReferenceCondition:
    """Several references side by side: rows b borrow from references[rows[i]], or from none where it is -1."""
    if len(references) == 1:  # the usual case: nothing is copied
        return references[0].condition(timestep, rows)
    seen = [r.at(timestep) for r in references]
    return ReferenceCondition({path: torch.cat([s[path] for s in seen]) for path in seen[0]}, rows)


def predict(unet: UNet2DConditionModel, noisy: Tensor, timesteps: Tensor, c: Conditioning) -> Tensor:
    """One raw prediction under per-row conditions.

    Args:
        unet: the imitative U-Net, attached when `c.reference` is given.
        noisy: b c h w, VP scaling.
        c: `encoder_hidden_states` are image tokens here; `inpaint` the channels of `inpaint_channels`.
    """
    assert c.inpaint is not None, "MimicBrush paints into a picture"
    return unet(
        torch.cat([noisy, c.inpaint], 1),
        timesteps,
        encoder_hidden_states=c.encoder_hidden_states,
        cross_attention_kwargs=None if c.reference is None else {"ip_hidden_states": c.reference},
        return_dict=False,
    )[0]
