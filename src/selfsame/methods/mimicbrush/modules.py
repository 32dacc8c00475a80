"""The new layers of MimicBrush (arXiv:2406.07547): attention that borrows, the trimmed reference net, the two projectors.

Legend of shapes: b rows, m references, n tokens, c width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from selfsame.adapters.processors import attend
from selfsame.values.conditioning import ReferenceCondition

FUSIONS = Literal["mean", "concat"]
LORA_LAYERS = r".*\.(to_q|to_k|to_v|to_out\.0|ff\.net\.0\.proj|ff\.net\.2|conv1|conv2)"


class ReferenceAttention:
    """Self-attention that also looks at a reference's tokens, with the layer's own K and V.

        concat   A(q, [n ; r])                              the paper, Eq. 2
        mean     0.5 A(q, [n ; r]) + 0.5 A(q, n)            official code and weights

    A diffusers attention processor for `attn1`, which is handed n = norm1(x). Rows without a reference are the base's.
    """

    def __init__(self, path: str, fusion: FUSIONS = "mean") -> None:
        self.path, self.fusion = path, fusion

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *,
        ip_hidden_states: Any = None,
    ) -> Tensor:
        q, k, v = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)  # b n c
        reference = ip_hidden_states
        if not isinstance(reference, ReferenceCondition) or not reference.features:
            z = attend(q, k, v, attn.heads)
        elif torch.is_grad_enabled():  # in training nothing waits for the numbers in `rows`, so that a step can be recorded
            z = attend(q, k, v, attn.heads)
            r = reference.features[self.path].to(q)[reference.rows.clamp(min=0)]  # b n c
            joint = attend(q, torch.cat([k, attn.to_k(r)], 1), torch.cat([v, attn.to_v(r)], 1), attn.heads)
            fused = joint if self.fusion == "concat" else (joint + z) / 2
            z = torch.where((reference.rows >= 0).view(-1, 1, 1), fused, z)
        else:
            borrows = reference.rows >= 0
            at, alone = borrows.nonzero().flatten(), (~borrows).nonzero().flatten()
            by_itself = alone if self.fusion == "concat" else torch.arange(len(q), device=q.device)  # rows whose own attention is needed
            z = torch.empty_like(q)
            if len(by_itself):
                z = z.index_copy(0, by_itself, attend(q[by_itself], k[by_itself], v[by_itself], attn.heads))
            if len(at):
                r = reference.features[self.path].to(q)  # m n c
                which = reference.rows[at]
                joint_k, joint_v = (torch.cat([own[at], to(r)[which]], 1) for own, to in ((k, attn.to_k), (v, attn.to_v)))
                joint = attend(q[at], joint_k, joint_v, attn.heads)
                z = z.index_copy(0, at, joint if self.fusion == "concat" else (joint + z[at]) / 2)
        return attn.to_out[1](attn.to_out[0](z))


def fused_paths(unet: nn.Module) -> list[str]:
    """Transformer blocks that borrow: all of the mid block, then of the up blocks."""
    names = [name.removesuffix(".attn1") for name, _ in unet.named_modules() if name.endswith(".attn1")]
    return [n for n in names if n.startswith("mid_block")] + [n for n in names if n.startswith("up_blocks")]


class _Nothing(nn.Module):
    """Stands where a layer was whose output nobody needs."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return torch.zeros_like(x)


def trimmed(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """The U-Net up to the first norm of its last transformer block, in place: what follows it is never used.

    The remaining keys are exactly those of the official `referencenet`.
    """
    last = unet.get_submodule(fused_paths(unet)[-1])
    last.attn1, last.ff = _Nothing(), _Nothing()
    last.attn2 = last.norm2 = None  # type: ignore[assignment]
    last.norm3 = nn.Identity()
    holder = unet.get_submodule(fused_paths(unet)[-1].rsplit(".transformer_blocks", 1)[0])
    holder.proj_out = nn.Identity()
    unet.conv_norm_out, unet.conv_out = None, nn.Identity()  # type: ignore[assignment]
    return unet


class ReferenceNet(nn.Module):
    """A trimmed U-Net that is only listened to: its first norms in the mid and up blocks."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = trimmed(unet)

    def add_lora(self, rank: int) -> ReferenceNet:
        """Freeze the net and let low-rank additions learn in every attention and feed-forward layer and in the residual blocks' convolutions: a net that
        ships as a fifteenth of its numbers, beside the base that it came from.
        """
        config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights=True, target_modules=LORA_LAYERS)
        self.unet.requires_grad_(False)
        inject_adapter_in_model(config, self.unet)
        return self

    def lora_state(self) -> dict[str, Tensor]:
        """The additions alone."""
        return {k: v for k, v in self.unet.state_dict().items() if ".lora_" in k}

    @contextmanager
    def _heard(self, into: dict[str, Tensor]) -> Iterator[None]:
        def hook_of(path: str) -> Any:
            def hear(module: nn.Module, inputs: Any, out: Tensor) -> None:
                into[path] = out

            return hear

        hooks = [self.unet.get_submodule(f"{path}.norm1").register_forward_hook(hook_of(path)) for path in fused_paths(self.unet)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def forward(self, latents: Tensor, timesteps: Tensor, image_tokens: Tensor) -> dict[str, Tensor]:
        """Clean reference latents m c h w, the current timestep, image tokens m t d -> features by path, m n c each."""
        features: dict[str, Tensor] = {}
        with self._heard(features):
            self.unet(latents, timesteps, encoder_hidden_states=image_tokens, return_dict=False)
        return features


class ImageProjector(nn.Module):
    """CLIP's second-to-last states to the U-Nets' context width: one linear layer, for every token."""

    def __init__(self, input_dim: int = 1280, output_dim: int = 768) -> None:
        super().__init__()
        self.projector = nn.Linear(input_dim, output_dim)

    def forward(self, states: Tensor) -> Tensor:
        return self.projector(states)


class DepthProjector(nn.Module):
    """A depth map of any size to channels at latent size, called depth guider in the official file."""

    def __init__(self, channels: int = 4, widths: tuple[int, ...] = (16, 32, 64, 128)) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(1, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for a, b in pairwise(widths):
            self.blocks += [nn.Conv2d(a, a, 3, padding=1), nn.Conv2d(a, b, 3, stride=2, padding=1)]
        self.conv_out = nn.Conv2d(widths[-1], channels, 3, padding=1)

    def forward(self, depth: Tensor, height: int = 64, width: int = 64) -> Tensor:
        """Depth b 1 H W, 0 or more, not normalised -> b c height width; officially always 64 x 64."""
        x = F.interpolate(depth, (height * 8, width * 8), mode="bilinear", align_corners=True)
        x = F.silu(self.conv_in(x))
        for block in self.blocks:
            x = F.silu(block(x))
        return self.conv_out(x)
