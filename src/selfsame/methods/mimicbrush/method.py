"""MimicBrush as one object: the imitative and the reference U-Net, what they are told, and one prediction of both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from selfsame.adapters.processors import processors_replaced
from selfsame.methods.mimicbrush.modules import FUSIONS, DepthProjector, ImageProjector, ReferenceAttention, ReferenceNet, fused_paths
from selfsame.values.conditioning import Conditioning, ReferenceCondition


class MimicBrush(nn.Module):
    """All that the official checkpoint holds but the CLIP image tower."""

    def __init__(self, unet: UNet2DConditionModel, reference_net: ReferenceNet, image_projector: ImageProjector, depth_projector: DepthProjector) -> None:
        super().__init__()
        self.unet, self.reference_net = unet, reference_net
        self.image_projector, self.depth_projector = image_projector, depth_projector

    @contextmanager
    def attached(self, fusion: FUSIONS = "mean") -> Iterator[UNet2DConditionModel]:
        """The imitative U-Net with attention that borrows; detached it is a plain U-Net again."""
        with processors_replaced(self.unet, {f"{path}.attn1": ReferenceAttention(path, fusion) for path in fused_paths(self.unet)}):
            yield self.unet

    def image_tokens(self, image_encoder: Any, clip_pixels: Tensor) -> Tensor:
        """CLIP pixels b 3 224 224 -> tokens b t d. "No image" is zero pixels, not zero tokens."""
        return self.image_projector(image_encoder(clip_pixels, output_hidden_states=True).hidden_states[-2])

    def depth_feature(self, depth: Tensor, latents: Tensor) -> Tensor:
        """Depth maps b 1 H W -> b c h w at the latents' size."""
        return self.depth_projector(depth, *latents.shape[-2:])


def inpaint_channels(mask: Tensor, collage: Tensor, depth_feature: Tensor) -> Tensor:
    """What follows the noisy latents, in the official order: mask b 1 h w, collage latents b c h w, depth feature b c h w."""
    return torch.cat([mask, collage, depth_feature], 1)


class Reference:
    """References of one picture or several, with features computed once a timestep and kept.

    Features depend on the reference latents, the image tokens and t alone: never on source, mask or seed. Kept, they serve any
    number of pictures exactly.
    """

    def __init__(self, net: ReferenceNet, latents: Tensor, image_tokens: Tensor) -> None:
        self.net, self.latents, self.image_tokens = net, latents, image_tokens
        self.kept: dict[int, Mapping[str, Tensor]] = {}

    @torch.no_grad()
    def at(self, timestep: Tensor | int) -> Mapping[str, Tensor]:
        """Features of all references at a timestep."""
        t = int(timestep)
        if t not in self.kept:
            self.kept[t] = self.net(self.latents, torch.tensor(t, device=self.latents.device), self.image_tokens)
        return self.kept[t]

    def condition(self, timestep: Tensor | int, rows: Tensor) -> ReferenceCondition:
        """For rows b that borrow from reference rows[i], or from none where it is -1."""
        return ReferenceCondition(self.at(timestep), rows)


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
