"""The attribute reader: what a picture shows, to score whether a prompt was followed. Trained on renders only."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsame.mannequins.attributes import CLOTHES, COLOUR_NAMES, EXPRESSIONS, GLASSES, HATS, SCENES, STYLES, TURNS

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "style": STYLES,
    "scene": SCENES,
    "expression": EXPRESSIONS,
    "clothes": CLOTHES,
    "clothes_colour": COLOUR_NAMES,
    "hat": HATS,
    "hat_colour": COLOUR_NAMES,
    "glasses": GLASSES,
    "turn": TURNS,
}
GREY_STYLES = ("pencil sketch", "film noir", "neon")  # colours cannot be read there


def readable(attributes: dict[str, str]) -> dict[str, int]:
    """The attributes of a person's picture that can be read off it, as class numbers."""
    known = {}
    for name, values in ATTRIBUTES.items():
        value = attributes.get(name, "")
        if value not in values:
            continue
        if name.endswith("_colour") and attributes.get("style") in GREY_STYLES:
            continue
        if name == "hat_colour" and attributes.get("hat", "none") == "none":
            continue
        known[name] = values.index(value)
    return known


class AttributeReader(nn.Module):
    """b 3 128 128 in [-1, 1] -> logits b n for each attribute."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        w = width

        def conv(c_in: int, c_out: int, stride: int) -> list[nn.Module]:
            return [nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]

        self.body = nn.Sequential(
            *conv(3, w, 2),
            *conv(w, 2 * w, 2),
            *conv(2 * w, 2 * w, 1),
            *conv(2 * w, 4 * w, 2),
            *conv(4 * w, 4 * w, 1),
            *conv(4 * w, 6 * w, 2),
            nn.Conv2d(6 * w, 64, 1),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.hidden = nn.Sequential(nn.Linear(64 * 64, 128), nn.ReLU(), nn.Dropout(0.1))
        self.heads = nn.ModuleDict({name: nn.Linear(128, len(values)) for name, values in ATTRIBUTES.items()})

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        x = self.hidden(self.body(pixels))
        return {name: head(x) for name, head in self.heads.items()}


def reader_loss(logits: dict[str, Tensor], classes: dict[str, Tensor]) -> Tensor:
    """Mean cross entropy over attributes; class -1 is not read."""
    losses = [F.cross_entropy(logits[n].float(), c, ignore_index=-1) for n, c in classes.items() if bool((c >= 0).any())]
    return torch.stack(losses).mean()


@torch.no_grad()
def read(net: nn.Module, images: list[np.ndarray], batch_size: int = 64) -> list[dict[str, str]]:
    """Attribute words of pictures (h w 3 uint8, resized to 128 px by the caller when needed)."""
    net.eval()
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    words: list[dict[str, str]] = [{} for _ in images]
    device = next(net.parameters(), pixels).device
    for start in range(0, len(images), batch_size):
        logits = net(pixels[start : start + batch_size].to(device))
        for name, values in ATTRIBUTES.items():
            for i, k in enumerate(logits[name].argmax(1).tolist()):
                words[start + i][name] = values[k]
    return words


def agreement(asked: dict[str, str], seen: dict[str, str]) -> tuple[int, int]:
    """How many of the asked attributes that can be read are seen, and how many were asked."""
    known = readable(asked)
    right = sum(ATTRIBUTES[name].index(seen[name]) == k for name, k in known.items())
    return right, len(known)


@torch.no_grad()
def reader_features(net: AttributeReader, images: list[np.ndarray], batch_size: int = 64) -> np.ndarray:
    """What the reader makes its words of, one row of 128 numbers a picture: the space in which clouds of pictures are compared."""
    net.eval()
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    device = next(net.parameters(), pixels).device
    return torch.cat([net.hidden(net.body(part.to(device))).cpu() for part in pixels.split(batch_size)]).numpy()


@torch.no_grad()
def perceptual_distance(net: AttributeReader, a: Tensor, b: Tensor) -> Tensor:
    """How differently two pictures look to the reader's layers, in the manner of LPIPS (arXiv:1801.03924, Eq. 1) with equal weights.

    Args:
        a, b: n 3 128 128 in [-1, 1].

    Returns:
        n, 0 for equal pictures; the mean over layers of the squared distance of unit features, averaged over places.
    """
    net.eval()
    layers = []
    for layer in net.body:
        a, b = layer(a), layer(b)
        if isinstance(layer, nn.ReLU):
            layers.append((F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean((1, 2)))
    return torch.stack(layers).mean(0)
