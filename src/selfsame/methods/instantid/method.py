"""InstantID as one object that attaches to a stock U-Net: tokens, conditions and one prediction of both networks."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from selfsame.adapters.keeping import Kept, forwards_replaced
from selfsame.adapters.processors import CrossAttention, cross_attention_paths, processors_replaced
from selfsame.images.files import written_whole
from selfsame.methods.instantid.modules import DecoupledCrossAttention, FaceProjections, Resampler
from selfsame.values.conditioning import Conditioning, FaceCondition, SpatialCondition

OURS = "adapter.safetensors"  # Resampler and adapter, as `InstantID.save_pretrained` writes them
ADAPTER_FILES = ("ip-adapter.bin", "ip-adapter.safetensors")  # the same in the official layout and in ComfyUI's
FACE_GAIN = 4.0  # a face is one key beside 16 queries: at 1 its share of the fresh tokens' spread is a fifth, at 4 nine tenths


@dataclass(frozen=True)
class ResamplerSize:
    """Sizes of the Resampler; the defaults are the official SDXL ones."""

    dim: int = 1280
    depth: int = 4
    dim_head: int = 64
    heads: int = 20
    num_queries: int = 16
    embedding_dim: int = 512
    output_dim: int = 2048
    ff_mult: int = 4


def noted_in(path: Path) -> dict[str, str]:
    """What `save_pretrained` noted in its file: at least the Resampler's sizes.

    Raises:
        ValueError: it notes none.
    """
    with safe_open(path, "pt") as f:
        noted = f.metadata() or {}
    if "resampler" not in noted:
        raise ValueError(f"{path}: says nothing of its Resampler's sizes; it was not written by InstantID.save_pretrained")
    return noted


def noted_size(path: Path) -> ResamplerSize:
    """The Resampler's sizes that `save_pretrained` noted in its file; raises as `noted_in` does."""
    return ResamplerSize(**json.loads(noted_in(path)["resampler"]))


def noted_reads(path: Path) -> Literal["face", "text"]:
    """What IdentityNet's cross-attention saw in training, by the same notes."""
    return "text" if noted_in(path).get("net_reads") == "text" else "face"


class ImageAdapter(nn.Module):
    """K' and V' of every cross-attention layer, numbered as in the official file (odd numbers; down, up, mid)."""

    def __init__(self, layers: dict[str, FaceProjections]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({path.replace(".", "/"): layer for path, layer in layers.items()})

    @classmethod
    def of(cls, unet: UNet2DConditionModel, *, from_base: bool = True) -> ImageAdapter:
        """Projections of the right widths; `from_base` starts them from the layer's own K and V, as IP-Adapter does."""
        layers = {}
        for path in cross_attention_paths(unet):
            attn = unet.get_submodule(path)
            to_k: nn.Linear = attn.to_k  # type: ignore[assignment]
            to_v: nn.Linear = attn.to_v  # type: ignore[assignment]
            layer = FaceProjections(to_k.out_features, to_k.in_features)
            if from_base:
                layer.to_k_ip.weight.data.copy_(to_k.weight.data)
                layer.to_v_ip.weight.data.copy_(to_v.weight.data)
            layers[path] = layer
        return cls(layers)

    def processors(self, keeps: bool = False) -> dict[str, DecoupledCrossAttention]:
        return {name.replace("/", "."): DecoupledCrossAttention(layer, keeps) for name, layer in self.layers.items()}  # type: ignore[arg-type]


class InstantID(nn.Module):
    """Resampler, Image Adapter and IdentityNet. Its parameters are exactly what InstantID trains."""

    def __init__(self, resampler: Resampler, adapter: ImageAdapter, identity_net: ControlNetModel, size: ResamplerSize) -> None:
        super().__init__()
        self.resampler, self.adapter, self.identity_net, self.size = resampler, adapter, identity_net, size
        self.net_reads: Literal["face", "text"] = "face"  # what IdentityNet's cross-attention sees; the text is an ablation, and ControlNet as usual

    @classmethod
    def new(
        cls,
        unet: UNet2DConditionModel,
        size: ResamplerSize,
        conditioning_channels: Sequence[int] = (16, 32, 96, 256),
        *,
        loudness: float = 0.0,
        net_loudness: float | None = None,
    ) -> InstantID:
        """A fresh method for a base: K', V' and IdentityNet start from the base's weights, but whatever reads values out of face tokens is made quieter.

        Args:
            loudness: of V' and of IdentityNet's V, over the base's V. At 0 the method starts as the base itself. Tokens of a fresh Resampler are noise to
                the base's own V (loudness 1, as in the papers), and the first thing that is learned is to make them all alike (`docs/training.md`).
            net_loudness: of IdentityNet's V alone, where it shall be another: the text, for one, is no noise to it.
        """
        net: Any = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=tuple(conditioning_channels))
        adapter, resampler = ImageAdapter.of(unet), Resampler(**asdict(size))
        for layer in adapter.layers.values():
            layer.to_v_ip.weight.data.mul_(loudness)  # type: ignore[union-attr, operator]
        for path in cross_attention_paths(net):
            net.get_submodule(path).to_v.weight.data.mul_(loudness if net_loudness is None else net_loudness)
        for attention, _ in resampler.layers:  # type: ignore[misc]
            nn.init.constant_(attention.norm1.weight, FACE_GAIN)
        return cls(resampler, adapter, net.requires_grad_(True), size)

    @contextmanager
    def attached(self, unet: UNet2DConditionModel, *, keeps: bool = False) -> Iterator[UNet2DConditionModel]:
        """The U-Net with decoupled cross-attention; detached it is bit-identical to what it was.

        Args:
            keeps: weights stay as they are meanwhile, so what depends on text, faces and drawings alone is computed once for each tensor,
                here and in IdentityNet.
        """
        with ExitStack() as stack:
            stack.enter_context(processors_replaced(unet, self.adapter.processors(keeps)))
            if keeps:
                stack.enter_context(self._net_keeping())
            yield unet

    @contextmanager
    def _net_keeping(self) -> Iterator[None]:
        net: Any = self.identity_net
        paths = [path for path in cross_attention_paths(net) if type(net.get_submodule(path).processor) in (AttnProcessor, AttnProcessor2_0)]
        kept, draw = Kept(), net.controlnet_cond_embedding.forward
        with (
            processors_replaced(net, {path: CrossAttention(keeps=True) for path in paths}),
            forwards_replaced({net.controlnet_cond_embedding: lambda conditioning: kept("drawing", conditioning, draw)}),
        ):
            yield

    def tokens(self, face_embedding: Tensor) -> Tensor:
        """Raw embeddings b k 512 (k photos of one person jointly) -> ip_tokens b 16 c.

        Raises:
            ValueError: the Resampler reads something else.
        """
        weight = self.resampler.proj_in.weight
        if face_embedding.shape[-1] != weight.shape[1]:
            raise ValueError(
                f"the Resampler reads {weight.shape[1]} numbers, a face embedding has {face_embedding.shape[-1]}: the weights look like an IP-Adapter Plus "
                "(CLIP features), or were trained with another face reader; give InstantID's ip-adapter.bin"
            )
        return self.resampler(face_embedding.to(weight))

    def no_face(self, count: int, num_photos: int = 1) -> Tensor:
        """Tokens of "no face": the Resampler of zeros, which is not zero. count 16 c."""
        return self.tokens(torch.zeros(1, num_photos, self.size.embedding_dim)).expand(count, -1, -1)

    def save_pretrained(self, folder: Path, *, half: bool = False) -> None:
        """One safetensors file for Resampler and adapter, a diffusers folder for IdentityNet."""
        folder.mkdir(parents=True, exist_ok=True)
        dtype = torch.float16 if half else None

        def kept(module: nn.Module, prefix: str) -> dict[str, Tensor]:
            return {f"{prefix}.{k}": v.detach().to(dtype or v.dtype).contiguous().cpu() for k, v in module.state_dict().items()}

        values = kept(self.resampler, "image_proj") | kept(self.adapter, "ip_adapter")
        with written_whole(folder / OURS) as partial:
            save_file(values, partial, metadata={"format": "pt", "resampler": json.dumps(asdict(self.size)), "net_reads": self.net_reads})
        for other in ADAPTER_FILES:
            (folder / other).unlink(missing_ok=True)  # an older one would be ambiguous
        net = self.identity_net
        if half:
            net = copy.deepcopy(net).half()
        net.save_pretrained(folder / "ControlNetModel")

    @classmethod
    def from_pretrained(cls, folder: Path, unet: UNet2DConditionModel, dtype: torch.dtype = torch.float32) -> InstantID:
        """Load what `save_pretrained` wrote, for a base whose layers have the same widths.

        Raises:
            RuntimeError: keys or shapes differ from those of this base.
        """
        path = folder / OURS
        size, values = noted_size(path), load_file(path)
        net = ControlNetModel.from_pretrained(folder / "ControlNetModel", torch_dtype=dtype, local_files_only=True)
        made = cls(Resampler(**asdict(size)), ImageAdapter.of(unet, from_base=False), net, size)
        made.net_reads = noted_reads(path)
        for module, prefix in ((made.resampler, "image_proj."), (made.adapter, "ip_adapter.")):
            module.load_state_dict({k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}, strict=True)
        return made.to(dtype).eval().requires_grad_(False)


def masked_residuals(down: Sequence[Tensor], mid: Tensor, region: Tensor) -> tuple[list[Tensor], Tensor]:
    """IdentityNet's residuals inside a region b 1 H W in [0, 1] only: bilinear, at each one's size, as the official full pipeline does."""

    def at(x: Tensor) -> Tensor:
        return x * F.interpolate(region.to(x), x.shape[-2:], mode="bilinear")

    return [at(d) for d in down], at(mid)


@dataclass(frozen=True)
class Residuals:
    """What IdentityNet adds to a U-Net's skip connections and to its middle, b c h w each."""

    down: list[Tensor]
    mid: Tensor


def residuals_of(net: ControlNetModel, noisy: Tensor, timesteps: Tensor, c: Conditioning) -> Residuals | None:
    """What IdentityNet says of the rows' drawings, weighed and summed; None when no row has one.

    Args: as of `predict`.
    """
    s = c.spatial
    if s is None:
        return None
    added, seen, times = c.added, noisy, timesteps
    if s.rows is not None:
        seen, times = noisy[s.rows], timesteps if timesteps.ndim == 0 else timesteps[s.rows]
        added = None if added is None else {k: v[s.rows] for k, v in added.items()}
    down, mid = net(
        seen,
        times,
        encoder_hidden_states=s.encoder_hidden_states,
        controlnet_cond=s.image,
        added_cond_kwargs=added,
        return_dict=False,
    )
    if s.region is not None:
        down, mid = masked_residuals(down, mid, s.region)
    scale = s.scale.to(noisy).view(-1, 1, 1, 1)

    def summed(x: Tensor) -> Tensor:
        weighed = x * scale
        return weighed if s.rows is None else weighed.new_zeros(len(noisy), *x.shape[1:]).index_add(0, s.rows, weighed)

    return Residuals([summed(d) for d in down], summed(mid))


def predict(
    unet: UNet2DConditionModel, net: ControlNetModel | None, noisy: Tensor, timesteps: Tensor, c: Conditioning, residuals: Residuals | None = None
) -> Tensor:
    """One raw prediction under per-row conditions; parts whose condition is None are not run.

    Args:
        unet: with processors attached when `c.face` is given.
        net: IdentityNet; needed when `c.spatial` is given.
        noisy: b c h w, VP scaling.
        timesteps: b or scalar.
        residuals: IdentityNet's, when they are known already; it is then not run.
    """
    if residuals is None and c.spatial is not None:
        assert net is not None, "a spatial condition needs IdentityNet"
        residuals = residuals_of(net, noisy, timesteps, c)
    return unet(
        noisy,
        timesteps,
        encoder_hidden_states=c.encoder_hidden_states,
        cross_attention_kwargs=None if c.face is None else {"ip_hidden_states": c.face},
        added_cond_kwargs=c.added,
        down_block_additional_residuals=residuals and residuals.down,
        mid_block_additional_residual=residuals and residuals.mid,
        return_dict=False,
    )[0]


def face_conditions(
    ip_tokens: Tensor, kps_image: Tensor, adapter_scale: float, controlnet_scale: float, region: Tensor | None = None
) -> tuple[FaceCondition | None, SpatialCondition | None]:
    """The two conditions of equal strength in all rows; strength 0 leaves a part out altogether."""
    rows = torch.ones(len(ip_tokens), device=ip_tokens.device)
    face = FaceCondition(ip_tokens, rows * adapter_scale, region) if adapter_scale else None
    spatial = SpatialCondition(kps_image, ip_tokens, rows * controlnet_scale, region) if controlnet_scale else None
    return face, spatial
