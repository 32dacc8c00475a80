"""Batch to loss: both U-Nets (or an adapter on the reference net) and the two projectors learn to fill what is hidden.

The training code was never released and the paper states no loss; this is the base's own (arXiv:2406.07547, Sec. 3.2):

    L = E || y - f(z_t, t, mask, collage, depth ; reference net(z_ref, t, tokens), tokens) ||^2

over the whole picture, y by the base's prediction type, and a weight where it paints that is 1 by default.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from selfsame.methods.mimicbrush.method import MimicBrush, inpaint_channels, predict
from selfsame.values.conditioning import Conditioning, ReferenceCondition


class MimicBrushTrainer(nn.Module):
    """The method attached to its own U-Net, behind one call that several processes may wrap."""

    empty_states: Tensor

    def __init__(self, method: MimicBrush, empty_states: Tensor, *, use_net: bool = True, use_tokens: bool = True, pooled: bool = False) -> None:
        """
        Args:
            empty_states: t k, CLIP's second-to-last states of zero pixels, "no picture".
            use_net: False leaves the reference net out: image tokens alone, as in Paint by Example; the paper's ablation.
            use_tokens: False gives every row the tokens of no picture: the reference net alone.
            pooled: of CLIP's tokens the first alone, which stands for the whole picture.
        """
        super().__init__()
        self.register_buffer("empty_states", empty_states, persistent=False)
        self.method = method
        method.use_net, method.use_tokens, method.pooled = use_net, use_tokens, pooled  # the saved weights say so
        self._attachment = ExitStack()
        self._attachment.enter_context(method.attached())

    def detach(self) -> None:
        """Leave the U-Net a plain one."""
        self._attachment.close()

    def forward(
        self, noisy: Tensor, timesteps: Tensor, mask: Tensor, collage: Tensor, depth: Tensor, reference: Tensor, image_states: Tensor, with_reference: Tensor
    ) -> Tensor:  # fmt: skip
        """One prediction.

        Args:
            noisy: b c h w, VP scaling.
            mask: b 1 h w, 1 where to paint.
            collage, reference: b c h w latents.
            depth: b 1 H W, zeros: shape is free.
            image_states: b t k, CLIP's second-to-last states of the reference.
            with_reference: b bool; rows without one get no reference net and the tokens of no picture.
        """
        told = with_reference if self.method.use_tokens else torch.zeros_like(with_reference)
        tokens = self.method.tokens(torch.where(told[:, None, None], image_states, self.empty_states))
        condition, heard = None, noisy.new_zeros(())
        if self.method.use_net:
            own = torch.arange(len(noisy), device=noisy.device)
            looks_at = self.method.reference_timestep
            features = self.method.reference_net(reference, timesteps if looks_at is None else torch.full_like(timesteps, looks_at), tokens)
            heard = sum((f.sum() for f in features.values()), heard) * 0  # rows without a reference: a gradient of zeros, which other processes wait for
            condition = ReferenceCondition(features, torch.where(with_reference, own, -1))
        channels = inpaint_channels(mask, collage, self.method.depth_feature(depth, noisy))
        return predict(self.method.unet, noisy, timesteps, Conditioning(tokens, reference=condition, inpaint=channels)) + heard


def mimicbrush_loss(model: nn.Module, batch: Mapping[str, Tensor], mask_weight: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean square error and its parts.

    Args:
        batch: what the trainer's call takes by its names (`t` for timesteps), and `target` b c h w.
        mask_weight: weight where it paints; each picture counts alike, however much of it is hidden.
    """
    given = ("noisy", "t", "mask", "collage", "depth", "reference", "image_states", "with_reference")
    out = model(*(batch[name] for name in given)).float()
    square = (out - batch["target"]).square().mean(1, keepdim=True)
    weight = 1 + (mask_weight - 1) * batch["mask"]
    inside = (square * batch["mask"]).sum() / batch["mask"].sum().clamp_min(1)
    loss = ((square * weight).mean((1, 2, 3)) / weight.mean((1, 2, 3))).mean()
    return loss, {"plain": square.mean(), "inside": inside}
