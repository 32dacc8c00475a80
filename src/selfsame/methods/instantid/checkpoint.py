"""Official files to ours and back, strictly: `ip-adapter.bin` with its two halves `image_proj` and `ip_adapter`, and `ControlNetModel/`."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import init_empty_weights
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors import safe_open
from torch import Tensor

from selfsame.images.files import InputError, read_json
from selfsame.methods.instantid.method import ADAPTER_FILES, OURS, ImageAdapter, InstantID, ResamplerSize, noted_reads, noted_size
from selfsame.methods.instantid.modules import Resampler
from selfsame.models.single_file import DTYPES, header_of
from selfsame.weights.official import read_official, read_stock_model, tensors_under, write_tensors

ABOUT = "selfsame.json"  # beside one's own weights: which encoder's embeddings they read
OFFICIAL_ENCODER = "antelopev2"
NET_FOLDER = "ControlNetModel"
DIM_HEAD = 64  # of the official Resampler; shapes do not tell it
FREE_NAME = re.compile(r"ip.?adapter.*instant.?id.*\.(bin|pth|safetensors)")
HINT = "controlnet_cond_embedding."  # how keys begin that only a ControlNet has
LOOKS = (  # the beginning or an inner part of a key that only such files have
    (HINT, "a ControlNet"),
    ("control_model.", "a ControlNet under the original code's keys"),
    ("model.diffusion_model.", "a whole Stable Diffusion checkpoint"),
    ("lora_", "a LoRA"),
    (".lora_A.", "a LoRA"),
    ("referencenet.", "MimicBrush's mimicbrush.bin"),
    ("image_proj.perceiver_resampler.", "an IP-Adapter FaceID Plus"),
    ("image_proj.proj.0.", "an IP-Adapter FaceID"),
    ("image_proj.proj.", "a plain IP-Adapter (CLIP image embeddings)"),
    ("image_proj.latents", "an adapter with a Resampler, such as InstantID's or IP-Adapter Plus's"),
    ("time_embedding.", "a U-Net"),
    ("decoder.mid_block.", "a VAE"),
    ("emb_params", "a textual inversion"),
)


def adapter_from_official(values: Mapping[str, Tensor], adapter: ImageAdapter) -> None:
    """Load `{n}.to_k_ip.weight`, `{n}.to_v_ip.weight` (n odd, order down, up, mid) strictly.

    Raises:
        ValueError: missing, unexpected or misshapen keys; a base with fewer cross-attention layers gives unexpected ones.
    """
    ours: dict[str, Tensor] = {}
    expected: set[str] = set()
    own = adapter.state_dict()
    for i, name in enumerate(adapter.layers):
        for part in ("to_k_ip", "to_v_ip"):
            theirs, mine = f"{2 * i + 1}.{part}.weight", f"layers.{name}.{part}.weight"
            expected.add(theirs)
            if theirs in values:
                if values[theirs].shape != own[mine].shape:
                    raise ValueError(f"ip_adapter key {theirs} has shape {tuple(values[theirs].shape)}, this base needs {tuple(own[mine].shape)}")
                ours[mine] = values[theirs]
    missing, extra = sorted(expected - set(values)), sorted(set(values) - expected)
    if missing or extra:
        raise ValueError(
            f"ip_adapter does not fit this base: {len(missing)} keys missing {missing[:3]}, {len(extra)} unexpected {extra[:3]}; "
            f"the base must have the checkpoint's number of cross-attention layers (it looks like {looks_like({'ip_adapter': dict(values)})})"
        )
    adapter.load_state_dict(ours, strict=True)


def resampler_from_official(values: Mapping[str, Tensor], resampler: Resampler) -> None:
    """Load the `image_proj` half; the names are the same.

    Raises:
        ValueError: missing, unexpected or misshapen keys.
    """
    own = resampler.state_dict()
    missing, extra = sorted(set(own) - set(values)), sorted(set(values) - set(own))
    if missing or extra:
        raise ValueError(
            f"image_proj does not fit: {len(missing)} keys missing {missing[:3]}, {len(extra)} unexpected {extra[:3]}; "
            f"it looks like {looks_like({'image_proj': dict(values)})}"
        )
    misshapen = next((k for k in own if own[k].shape != values[k].shape), None)
    if misshapen:
        raise ValueError(f"image_proj key {misshapen} has shape {tuple(values[misshapen].shape)}, such a Resampler needs {tuple(own[misshapen].shape)}")
    resampler.load_state_dict(dict(values), strict=True)


def adapter_to_official(adapter: ImageAdapter) -> dict[str, Tensor]:
    """Our adapter under the official numbers."""
    own = adapter.state_dict()
    return {f"{2 * i + 1}.{part}.weight": own[f"layers.{name}.{part}.weight"] for i, name in enumerate(adapter.layers) for part in ("to_k_ip", "to_v_ip")}


def looks_like(values: Any) -> str:
    """What a file of other keys seems to be, for messages."""
    if not isinstance(values, Mapping):
        return f"one {type(values).__name__}"
    keys = [f"{k}.{inner}" for k, v in values.items() if isinstance(v, Mapping) for inner in v] + [str(k) for k in values]
    for part, name in LOOKS:
        if any(k.startswith(part) or (not part.startswith("image_proj") and part in k) for k in keys):
            return name
    return f"a file with the keys {', '.join(sorted(map(str, values))[:3])}"


def resampler_size(values: Mapping[str, Tensor], dim_head: int = DIM_HEAD) -> ResamplerSize:
    """The sizes that an `image_proj` was made with.

    Raises:
        ValueError: it holds no Resampler.
    """
    needed = ("latents", "proj_in.weight", "proj_out.weight", "layers.0.0.to_q.weight", "layers.0.1.1.weight")
    absent = [k for k in needed if k not in values]
    if absent:
        raise ValueError(f"image_proj holds no Resampler: {', '.join(absent)} missing")
    depth = 1 + max(int(k.split(".")[1]) for k in values if k.startswith("layers."))
    (_, num_queries, dim), (inner, _) = values["latents"].shape, values["layers.0.0.to_q.weight"].shape
    embedding, output = values["proj_in.weight"].shape[1], values["proj_out.weight"].shape[0]
    return ResamplerSize(dim, depth, dim_head, inner // dim_head, num_queries, embedding, output, values["layers.0.1.1.weight"].shape[0] // dim)


def _dim_head_of(path: Path) -> int:
    """The head width that a safetensors file notes; the official one of others."""
    if path.suffix != ".safetensors":
        return DIM_HEAD
    with safe_open(path, "pt") as f:
        return int((f.metadata() or {}).get("dim_head", DIM_HEAD))


def read_adapter(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The halves `image_proj` and `ip_adapter` of InstantID's adapter file: the official torch file, or safetensors with prefixes (ComfyUI's form).

    Raises:
        InputError: unreadable, or some other file; the message says what it looks like.
    """
    values = read_official(path, "InstantID's adapter")
    halves = halves_of(values)
    if halves is None:
        raise InputError(f"{path}: not InstantID's adapter, it looks like {looks_like(values)}; give ip-adapter.bin of InstantX/InstantID")
    return halves


def halves_of(values: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]] | None:
    """`image_proj` and `ip_adapter` of what a file holds, nested or flat; None when it is no adapter of InstantID."""
    halves = tensors_under(values, "image_proj"), tensors_under(values, "ip_adapter")
    return halves if all(halves) and "latents" in halves[0] else None


def convert_adapter(halves: tuple[dict[str, Tensor], dict[str, Tensor]], source: Path, out: Path) -> Path:
    """The adapter of `source` in the other form, numbers untouched: nested in `.bin`, flat with prefixes in `.safetensors` (ComfyUI's).

    Raises:
        InputError: another ending, one of selfsame's own files, or a Resampler that the official form cannot describe.
    """
    image_proj, ip_adapter = halves
    if any(k.startswith("layers.") for k in ip_adapter):
        raise InputError(f"{source}: selfsame's own file, whose layers other programs cannot number; load its folder and write `instantid_to_official`")
    dim_head = _dim_head_of(source)
    if out.suffix != ".safetensors" and dim_head != DIM_HEAD:
        raise InputError(f"{source}: a Resampler with heads of {dim_head}, which a .bin cannot say (officially {DIM_HEAD}); end --out in .safetensors")
    return write_tensors(out, {"image_proj": image_proj, "ip_adapter": ip_adapter}, {"dim_head": str(dim_head)})


def encoder_of(folder: Path) -> str:
    """Which encoder's embeddings the weights in a folder read: antelopev2's, unless a `selfsame.json` there names another ({"encoder": NAME})."""
    path = folder / ABOUT
    return str(read_json(path).get("encoder", OFFICIAL_ENCODER)) if path.is_file() else OFFICIAL_ENCODER


def is_instantid(folder: Path) -> bool:
    """Whether a folder holds an InstantID, in whatever form."""
    return bool(adapters_in(folder))


def dtypes_of(folder: Path) -> tuple[torch.dtype, torch.dtype]:
    """What the adapter and IdentityNet in a folder are written in; released, they differ."""
    adapter, net = next(iter(read_adapter(adapters_in(folder)[0])[0].values())).dtype, weights_in(folder)[-1]
    files = [net] if net.is_file() else sorted(net.glob("*.safetensors"))
    return adapter, next((DTYPES[v["dtype"]] for file in files for v in header_of(file).values() if v["dtype"] in DTYPES), adapter)


def adapters_in(folder: Path) -> list[Path]:
    """Files that hold an adapter by their names: the official and our own, else such as A1111 keeps them (ip-adapter_instant_id_sdxl.bin)."""
    known = [folder / name for name in (*ADAPTER_FILES, OURS) if (folder / name).is_file()]
    return known or sorted(p for p in folder.glob("*") if FREE_NAME.fullmatch(p.name.lower()))


def net_file_of(folder: Path) -> Path | None:
    """IdentityNet as users of ComfyUI and A1111 have it: one safetensors file without a config, beside the adapter or in its folder."""
    found = [p for where in (folder, folder / NET_FOLDER) for p in sorted(where.glob("*.safetensors")) if any(k.startswith(HINT) for k in header_of(p))]
    return found[0] if len(found) == 1 else None


def weights_in(folder: Path) -> list[Path]:
    """What is loaded of a folder: the adapter's file, and IdentityNet's folder or file."""
    alone = None if (folder / NET_FOLDER / "config.json").is_file() else net_file_of(folder)
    return [*adapters_in(folder)[:1], alone or folder / NET_FOLDER]


def identity_net_in(path: Path, unet: UNet2DConditionModel, dtype: torch.dtype) -> ControlNetModel:
    """IdentityNet from one file of diffusers' keys, strictly: made as the base's own ControlNet, which the released one is.

    Raises:
        InputError: it holds other keys or shapes; the message names three.
    """
    values = read_official(path, "IdentityNet")
    with init_empty_weights():
        net = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    own = net.state_dict()
    wrong = sorted((set(own) ^ set(values)) | {k for k in own if k in values and own[k].shape != values[k].shape})
    if wrong:
        some = ", ".join(wrong[:3])
        raise InputError(f"{path}: no ControlNet of this base but {looks_like(values)}; {len(wrong)} keys are missing, extra or of another shape: {some}")
    net.load_state_dict({k: v.to(dtype) for k, v in values.items()}, strict=True, assign=True)
    return net


def identity_net_of(folder: Path, dtype: torch.dtype) -> ControlNetModel:
    """IdentityNet from its diffusers folder, strictly.

    Raises:
        InputError: files are missing, damaged or hold other keys; the message names three.
    """
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: no config.json there; IdentityNet's folder, or its one .safetensors file, must lie beside the adapter's file")
    net, about = read_stock_model(ControlNetModel, folder, "IdentityNet", torch_dtype=dtype)
    wrong = [*about["missing_keys"], *about["unexpected_keys"], *(k[0] for k in about["mismatched_keys"])]
    if wrong:
        seen = looks_like({k: v for p in folder.glob("*.safetensors") for k, v in header_of(p).items()})
        some = ", ".join(sorted(wrong)[:3])
        raise InputError(f"{folder}: not a whole IdentityNet but {seen}; {len(wrong)} keys are missing, extra or of another shape: {some}")
    return net


def instantid_from_official(folder: str | Path, unet: UNet2DConditionModel, *, dtype: torch.dtype | None = None) -> InstantID:
    """The released model, or any folder of its layout: `ip-adapter.bin` (or safetensors) and `ControlNetModel/` (or IdentityNet in one file, as for
    ComfyUI and A1111); also what `save_pretrained` wrote.

    Args:
        unet: the base it is for, SDXL for the released weights.
        dtype: of all its weights; by default the base's.

    Raises:
        InputError: a file is missing, unreadable or another one.
        ValueError: the weights are for another base; the message names shapes or keys.
    """
    folder = Path(folder)
    dtype = dtype or unet.dtype
    there = adapters_in(folder)
    if len(there) != 1:
        found = " and ".join(p.name for p in there) or "none of them"
        raise InputError(f"{folder}: give a folder with one of {', '.join((*ADAPTER_FILES, OURS))}, such as InstantX/InstantID's; it holds {found}")
    path = there[0]
    image_proj, ip_adapter = read_adapter(path)
    is_ours = path.name == OURS
    size = noted_size(path) if is_ours else resampler_size(image_proj, _dim_head_of(path))
    width = int(unet.config["cross_attention_dim"])
    if size.output_dim != width:
        raise ValueError(f"{path}: made for a base whose context is {size.output_dim} wide, this one's is {width}: SDXL has 2048, SD 2 1024, SD 1 768")
    where = weights_in(folder)[-1]
    net = identity_net_in(where, unet, dtype) if where.is_file() else identity_net_of(where, dtype)
    if int(net.config["cross_attention_dim"]) != width:
        raise ValueError(f"{folder / NET_FOLDER}: its context is {net.config['cross_attention_dim']} wide, this base's is {width}: it belongs to another base")
    method = InstantID(Resampler(**asdict(size)), ImageAdapter.of(unet, from_base=False), net, size)
    resampler_from_official(image_proj, method.resampler)
    if not is_ours:
        adapter_from_official(ip_adapter, method.adapter)
        return method.to(dtype).eval().requires_grad_(False)
    method.net_reads = noted_reads(path)
    try:
        method.adapter.load_state_dict(ip_adapter, strict=True)
    except RuntimeError as error:
        raise ValueError(f"{path}: made for a base with other cross-attention layers ({' '.join(str(error).split())[:160]})") from None
    return method.to(dtype).eval().requires_grad_(False)


def instantid_to_official(
    method: InstantID, folder: str | Path, *, form: Literal["official", "safetensors"] = "official", dtype: torch.dtype | None = None
) -> Path:
    """Write the official layout: what diffusers' IP-Adapter loader and the official code read (`ip-adapter.bin`), or ComfyUI's flat safetensors.

    Args:
        dtype: of what is written; None: as it is.

    Raises:
        ValueError: a Resampler with other heads than the official file can say, or an IdentityNet that reads the text.
    """
    if method.net_reads != "face":
        raise ValueError("its IdentityNet reads the text, which no other program's files can say: keep it in selfsame's own form (save_pretrained)")
    if form == "official" and method.size.dim_head != DIM_HEAD:
        raise ValueError(f"a Resampler with heads of {method.size.dim_head}: ip-adapter.bin cannot say so (officially {DIM_HEAD}); write form='safetensors'")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    halves = {"image_proj": method.resampler.state_dict(), "ip_adapter": adapter_to_official(method.adapter)}
    parts = {name: {k: v.to(dtype or v.dtype) for k, v in values.items()} for name, values in halves.items()}
    path = write_tensors(folder / f"ip-adapter.{'bin' if form == 'official' else 'safetensors'}", parts, {"dim_head": str(method.size.dim_head)})
    for other in (*ADAPTER_FILES, OURS):
        if other != path.name:
            (folder / other).unlink(missing_ok=True)  # an older one would be ambiguous
    net: Any = method.identity_net if dtype is None else copy.deepcopy(method.identity_net)
    net.to(dtype or net.dtype)
    net.save_pretrained(folder / NET_FOLDER)
    config = folder / NET_FOLDER / "config.json"
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "_name_or_path"}, indent=2) + "\n")
    return path
