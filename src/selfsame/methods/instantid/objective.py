"""Batch to loss: the base frozen; Resampler, K'/V' and IdentityNet trained together.

The official training code was never released; the paper gives the objective (arXiv:2401.07519, Eq. 3):

    L = E || eps - eps_theta(z_t, t, C_text, C_face) ||^2

here with the base's own prediction type as target, and a weight on the face that is 1 in the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from selfsame.methods.instantid.method import InstantID, predict
from selfsame.values.conditioning import Conditioning, FaceCondition, SpatialCondition


class InstantIDTrainer(nn.Module):
    """The method attached to its frozen base, behind one call that several processes may wrap.

    It stays attached until `detach`, not only during a call: gradient checkpointing runs parts of the forward pass again in
    the backward pass, and must find the same processors there.
    """

    def __init__(self, method: InstantID, unet: UNet2DConditionModel, *, use_adapter: bool = True, use_net: bool = True) -> None:
        """
        Args:
            use_adapter, use_net: False leaves the Image Adapter or IdentityNet out: the paper's ablation (Fig. 5), each trained alone.
        """
        super().__init__()
        if not (use_adapter or use_net):
            raise ValueError("neither Image Adapter nor IdentityNet is used: nothing would learn")
        self.method, self.use_adapter, self.use_net = method, use_adapter, use_net
        method.adapter.requires_grad_(use_adapter)
        method.identity_net.requires_grad_(use_net)
        method.resampler.requires_grad_(use_adapter or method.net_reads == "face")
        self.unet = unet.requires_grad_(False)
        self._attachment = ExitStack()
        self._attachment.enter_context(method.attached(unet))

    def detach(self) -> None:
        """Leave the base as it was found."""
        self._attachment.close()

    def forward(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        text: Tensor,
        embedding: Tensor,
        kps_image: Tensor,
        pooled: Tensor | None = None,
        time_ids: Tensor | None = None,
        holds: Tensor | None = None,
        region: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """noisy b c h w (VP), timesteps b, text b t c, embedding m k 512 (zeros: no face), kps_image m 3 H W in [0, 1]; SDXL's pooled b p, time_ids b 6;
        holds m, 1 where the Resampler shall not learn; several faces a picture: region m 1 H W, where each may act, rows m, the picture each stands in."""
        tokens = self.method.tokens(embedding)
        if holds is not None:  # a gradient of zeros rather than none: several processes wait for one from every parameter
            tokens = torch.lerp(tokens, tokens.detach(), holds.to(tokens).view(-1, 1, 1))
        scale = torch.ones(len(tokens), device=noisy.device)
        face = FaceCondition(tokens, scale, region, rows) if self.use_adapter else None
        read = tokens if self.method.net_reads == "face" else text if rows is None else text[rows]
        spatial = SpatialCondition(kps_image, read, scale, region, rows) if self.use_net else None
        c = Conditioning(text, pooled, time_ids, face=face, spatial=spatial)
        return predict(self.unet, self.method.identity_net, noisy, timesteps, c)


def instantid_loss(
    model: nn.Module, batch: Mapping[str, Tensor], also: Mapping[str, Callable[[Tensor, Mapping[str, Tensor]], Tensor]] | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted mean square error and its parts.

    Args:
        also: further losses by name, of the raw prediction b c h w and the batch; the paper has none.
        batch: `noisy`, `t`, `text`, `embedding`, `kps_image` as the trainer's call takes them, `target` b c h w, `weight` b 1 h w;
            for SDXL `pooled` and `time_ids`; `holds` b while the Resampler stays as it is.
    """
    more = {k: batch[k] for k in ("pooled", "time_ids", "holds") if k in batch}
    out = model(batch["noisy"], batch["t"], batch["text"], batch["embedding"], batch["kps_image"], **more).float()
    square = (out - batch["target"]).square().mean(1, keepdim=True)
    face = batch["weight"] > 1.0
    parts = {"plain": square.mean(), "face": (square * face).sum() / face.sum().clamp_min(1)}
    more = {name: loss(out, batch) for name, loss in (also or {}).items()}
    return sum(more.values(), (square * batch["weight"]).mean()), parts | more
