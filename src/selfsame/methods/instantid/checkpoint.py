"""Official files to ours and back, strictly: `ip-adapter.bin` with its two halves `image_proj` and `ip_adapter`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from selfsame.methods.instantid.method import ImageAdapter
from selfsame.methods.instantid.modules import Resampler


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
            "the base must have the checkpoint's number of cross-attention layers"
        )
    adapter.load_state_dict(ours, strict=True)


def resampler_from_official(values: Mapping[str, Tensor], resampler: Resampler) -> None:
    """Load the `image_proj` half; the names are the same.

    Raises:
        ValueError: missing or unexpected keys.
    """
    own = resampler.state_dict()
    missing, extra = sorted(set(own) - set(values)), sorted(set(values) - set(own))
    if missing or extra:
        raise ValueError(f"image_proj does not fit: {len(missing)} keys missing {missing[:3]}, {len(extra)} unexpected {extra[:3]}")
    resampler.load_state_dict(dict(values), strict=True)


def adapter_to_official(adapter: ImageAdapter) -> dict[str, Tensor]:
    """Our adapter under the official numbers."""
    own = adapter.state_dict()
    return {f"{2 * i + 1}.{part}.weight": own[f"layers.{name}.{part}.weight"] for i, name in enumerate(adapter.layers) for part in ("to_k_ip", "to_v_ip")}
