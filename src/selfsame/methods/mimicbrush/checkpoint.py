"""The official `mimicbrush.bin` and Depth Anything's file, strictly, by key."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from selfsame.methods.mimicbrush.method import MimicBrush

PARTS = ("image_proj", "depth_guider", "referencenet", "image_encoder", "unet")
POSITION_IDS = "vision_model.embeddings.position_ids"  # a buffer of old transformers


def load_strictly(module: nn.Module, values: Mapping[str, Tensor], name: str) -> None:
    """Fill a module from a part of a checkpoint; one that was made without memory takes the checkpoint's own tensors.

    Raises:
        ValueError: keys are missing, unexpected or of another shape; the message names the part and the first ones.
    """
    own = module.state_dict()
    missing, extra = sorted(set(own) - set(values)), sorted(set(values) - set(own))
    if missing or extra:
        raise ValueError(f"{name} does not fit: {len(missing)} keys missing {missing[:3]}, {len(extra)} unexpected {extra[:3]}")
    wrong = next((k for k in own if own[k].shape != values[k].shape), None)
    if wrong:
        raise ValueError(f"{name} key {wrong} has shape {tuple(values[wrong].shape)}, this model needs {tuple(own[wrong].shape)}")
    module.load_state_dict(dict(values), strict=True, assign=any(p.is_meta for p in module.parameters()))


def mimicbrush_from_official(values: Mapping[str, Mapping[str, Tensor]], method: MimicBrush, image_encoder: nn.Module) -> None:
    """Load the five parts of `mimicbrush.bin`.

    Raises:
        ValueError: a part is missing or does not fit.
    """
    absent = [part for part in PARTS if part not in values]
    if absent:
        raise ValueError(f"the checkpoint lacks {', '.join(absent)}: it is not a mimicbrush.bin")
    clip = {k: v for k, v in values["image_encoder"].items() if k != POSITION_IDS}
    targets = (method.image_projector, method.depth_projector, method.reference_net.unet, image_encoder, method.unet)
    for part, module in zip(PARTS, targets, strict=True):
        load_strictly(module, clip if part == "image_encoder" else values[part], part)


def mimicbrush_to_official(method: MimicBrush, image_encoder: nn.Module) -> dict[str, dict[str, Tensor]]:
    """The five parts under the official names (without the buffer that only old transformers had)."""
    modules = (method.image_projector, method.depth_projector, method.reference_net.unet, image_encoder, method.unet)
    return {part: dict(module.state_dict()) for part, module in zip(PARTS, modules, strict=True)}


_DEPTH_NAMES = (
    (r"^pretrained\.cls_token$", "backbone.embeddings.cls_token"),
    (r"^pretrained\.mask_token$", "backbone.embeddings.mask_token"),
    (r"^pretrained\.pos_embed$", "backbone.embeddings.position_embeddings"),
    (r"^pretrained\.patch_embed\.proj\.", "backbone.embeddings.patch_embeddings.projection."),
    (r"^pretrained\.norm\.", "backbone.layernorm."),
    (r"^pretrained\.blocks\.(\d+)\.", r"backbone.encoder.layer.\1."),
    (r"\.attn\.proj\.", ".attention.o_proj."),
    (r"\.ls([12])\.gamma$", r".layer_scale\1.lambda1"),
    (r"^depth_head\.projects\.(\d)\.", r"neck.reassemble_stage.layers.\1.projection."),
    (r"^depth_head\.resize_layers\.(\d)\.", r"neck.reassemble_stage.layers.\1.resize."),
    (r"^depth_head\.scratch\.output_conv1\.", "head.conv1."),
    (r"^depth_head\.scratch\.output_conv2\.0\.", "head.conv2."),
    (r"^depth_head\.scratch\.output_conv2\.2\.", "head.conv3."),
    (r"\.out_conv\.", ".projection."),
    (r"\.resConfUnit([12])\.conv([12])\.", r".residual_layer\1.convolution\2."),
)


def depth_anything_from_official(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Depth Anything v1's keys as transformers' `DepthAnythingForDepthEstimation` names them."""
    made: dict[str, Tensor] = {}
    for old, value in values.items():
        name = re.sub(r"^depth_head\.scratch\.layer(\d)_rn\.", lambda m: f"neck.convs.{int(m[1]) - 1}.", old)
        name = re.sub(r"^depth_head\.scratch\.refinenet(\d)\.", lambda m: f"neck.fusion_stage.layers.{4 - int(m[1])}.", name)
        for pattern, new in _DEPTH_NAMES:
            name = re.sub(pattern, new, name)
        if ".attn.qkv." in name:
            for part, third in zip("qkv", value.chunk(3), strict=True):
                made[name.replace(".attn.qkv.", f".attention.{part}_proj.")] = third
        else:
            made[name] = value
    return made
