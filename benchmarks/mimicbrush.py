"""Work of one guided MimicBrush step: all that the official code does, only what is needed, and with kept reference features.

    python benchmarks/mimicbrush.py                  tiny networks, seconds
    python benchmarks/mimicbrush.py --size sd15      Stable Diffusion 1.5's sizes with random weights: 9 GB, some minutes on two cores

All three give the same prediction; ratios are of one run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from selfsame.adapters.processors import attend, processors_replaced
from selfsame.methods.mimicbrush.method import DepthProjector, ImageProjector, MimicBrush, Reference, predict
from selfsame.methods.mimicbrush.modules import ReferenceNet, fused_paths
from selfsame.values.conditioning import Conditioning, stacked

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"block_out_channels": (32, 64, 64, 64), "cross_attention_dim": 32, "norm_num_groups": 8, "layers_per_block": 1, "sample_size": 16},
    "sd15": {"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768, "layers_per_block": 2, "sample_size": 64},
}
IMAGE_TOKENS = 257


class AllWork:
    """The official attention of a fused block in a batch of (negative, positive): joint over both pictures' tokens for both rows, queries of the
    reference included, plain for both rows, and plain for the negative row once more.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, ip_hidden_states: Any = None, **kwargs: Any) -> Tensor:
        n, r = hidden_states, ip_hidden_states[self.path]  # 2 n c each

        def own(x: Tensor) -> Tensor:
            return attend(attn.to_q(x), attn.to_k(x), attn.to_v(x), attn.heads)

        joint = own(torch.cat([n, r], 1))[:, : n.shape[1]]
        plain, negative = own(n), own(n[:1])
        z = torch.cat([negative, ((joint + plain) / 2)[1:]])
        return attn.to_out[1](attn.to_out[0](z))


def attention_flop(q: Any, k: Any, v: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """What torch's counter knows of other devices' kernels, for the CPU's."""
    return sdpa_flop_count(q, k, v)


def listened(net: UNet2DConditionModel, latents: Tensor, t: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """First norms of a whole U-Net, its tail included."""
    heard: dict[str, Tensor] = {}
    hooks = [net.get_submodule(f"{p}.norm1").register_forward_hook(lambda m, i, o, p=p: heard.__setitem__(p, o)) for p in fused_paths(net)]
    net(latents, t, encoder_hidden_states=tokens)
    for hook in hooks:
        hook.remove()
    return heard


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--repeats", type=int, default=0, help="timed runs of each; default: 20 tiny, 1 of Stable Diffusion's size")
    args = parser.parse_args()
    repeats = args.repeats or (20 if args.size == "tiny" else 1)
    torch.manual_seed(0)
    config = SIZES[args.size]
    side, width = config["sample_size"], config["cross_attention_dim"]
    whole = UNet2DConditionModel(**config, in_channels=4).eval()
    imitative = UNet2DConditionModel(**config, in_channels=13).eval()
    latents, reference, channels = torch.randn(1, 4, side, side), torch.randn(1, 4, side, side), torch.randn(1, 9, side, side)
    tokens, nothing = torch.randn(1, IMAGE_TOKENS, width), torch.randn(1, IMAGE_TOKENS, width)
    t = torch.tensor(501)

    def official() -> Tensor:
        heard = listened(whole, reference.repeat(2, 1, 1, 1), t, torch.cat([nothing, tokens]))
        with processors_replaced(imitative, {f"{p}.attn1": AllWork(p) for p in fused_paths(imitative)}):
            noisy = torch.cat([latents, channels], 1).repeat(2, 1, 1, 1)
            return imitative(noisy, t, torch.cat([nothing, tokens]), cross_attention_kwargs={"ip_hidden_states": heard}).sample

    def count(call: Callable[[], Tensor]) -> float:
        with FlopCounterMode(display=False, custom_mapping={torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flop}) as counter:
            call()
        return counter.get_total_flops() / 1e12

    def timed(call: Callable[[], Tensor]) -> float:
        call()
        began = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - began) / repeats

    expected = official()
    results = {"all the official work": (count(official), timed(official))}
    method = MimicBrush(imitative, ReferenceNet(whole), ImageProjector(8, width), DepthProjector())  # trims the reference net
    without = Conditioning(nothing, inpaint=channels)
    one_row = torch.zeros(1, dtype=torch.int64)

    def ours(kept: Reference) -> Tensor:
        with method.attached("mean") as unet:
            c = stacked(without, Conditioning(tokens, inpaint=channels, reference=kept.condition(t, one_row)))
            return predict(unet, latents.repeat(2, 1, 1, 1), t, c)

    def afresh() -> Tensor:
        return ours(Reference(method.reference_net, reference, tokens))

    kept = Reference(method.reference_net, reference, tokens)
    kept.at(t)
    for name, call in (("only what is needed", afresh), ("with kept reference features", lambda: ours(kept))):
        difference = float((call() - expected).abs().max() / expected.abs().max())
        assert difference < 1e-4, f"{name}: another prediction, off by {difference:.1e} of the largest value"
        results[name] = (count(call), timed(call))
    first = results["all the official work"]
    print(f"{args.size}: latents {side} x {side}, {IMAGE_TOKENS} image tokens, one guided step, {torch.get_num_threads()} threads, mean of {repeats}")
    for name, (tflop, seconds) in results.items():
        print(f"{name:30} {tflop:8.4f} TFLOP  {tflop / first[0]:5.2f}   {seconds:8.3f} s  {seconds / first[1]:5.2f}")


if __name__ == "__main__":
    main()
