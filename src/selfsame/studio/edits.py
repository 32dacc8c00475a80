"""Edits: a region of a picture painted anew after a reference, by MimicBrush. (`inpainting` puts people into pictures.)"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from selfsame.diffusion.sampling import Step, guided_together
from selfsame.images.files import InputError, must_show
from selfsame.images.masks import Window, cells_of, colours_matched, laid_over, resized, window_around
from selfsame.methods.mimicbrush.method import MimicBrush, Reference, inpaint_channels, merged, predict
from selfsame.methods.mimicbrush.pictures import latent_mask
from selfsame.models.latents import encode, pixels_of
from selfsame.models.mannequin import image_states, load_image_encoder
from selfsame.perception.depth import DepthNet, depth_of
from selfsame.studio.painting import calls_of, generators_of, last_of, noise_of
from selfsame.studio.request import MANNEQUIN, EditRequest
from selfsame.values.conditioning import Conditioning, stacked
from selfsame.weights import mannequin

SIDE = 128  # pixels of the square that the miniature paints
LARGEST = 12288  # pixels of a square that is cut out of a picture: half a gigabyte
ENOUGH = 8  # times the painted side: references that are larger still are made smaller first


@dataclass(frozen=True)
class Region:
    """Where to paint and after what."""

    mask: np.ndarray  # h w uint8 of the source's size, 255 where to paint
    reference: np.ndarray  # h w 3 uint8 of any size
    reference_mask: np.ndarray | None = None  # of the reference's size: only this part is looked at


@dataclass(frozen=True)
class Square:
    """One row of a batch, at the model's size."""

    source: np.ndarray  # s s 3 uint8
    mask: np.ndarray  # s s bool
    reference: np.ndarray | None  # s s 3 uint8; None: nothing to imitate
    depth: Tensor | None = None  # 1 1 h w, the shape to keep; None: free


class Editor:
    """Painting things and textures into pictures, after references.

    References that were seen lately stay in memory, with their features at each timestep.
    """

    side = SIDE  # pixels of the square that is painted
    dtype = torch.float32
    together = 8  # pictures painted at a time
    limits = replace(MANNEQUIN, guidance_scale=2.0, context=1.8)  # measured on validation things
    guides_shape = True  # the shape to keep is guided as the reference is, not told to the row without one
    kept_references = 4  # whose features stay in memory, of every timestep

    def __init__(self, studio: Any, method: MimicBrush | None = None) -> None:
        """
        Args:
            studio: whose `device`, `vae`, `scheduler` and `decode` are used.
        """
        self.studio = studio
        if method is not None:
            self.__dict__["method"] = method
        self.leave_out_net = self.leave_out_tokens = False  # only to measure what each is worth
        self._references: OrderedDict[str, Reference] = OrderedDict()

    @cached_property
    def method(self) -> MimicBrush:
        return MimicBrush.from_pretrained(mannequin.checked_folder("mimicbrush"), self.studio.unet).to(self.studio.device)

    @property
    def uses_net(self) -> bool:
        """Whether the reference net is listened to: not when the weights were trained without it."""
        return self.method.use_net and not self.leave_out_net

    @property
    def uses_tokens(self) -> bool:
        """Whether CLIP's tokens of the reference are shown, to both nets."""
        return self.method.use_tokens and not self.leave_out_tokens

    @cached_property
    def image_encoder(self) -> Any:
        return load_image_encoder().to(self.studio.device)  # type: ignore[arg-type]

    @cached_property
    def depth_net(self) -> Any:
        return mannequin.load_into(DepthNet(), "depth.safetensors")

    # ------------------------------------------------------------------------------------------ what other weights do otherwise

    def clip_pixels(self, square: np.ndarray) -> Tensor:
        """A reference as the image tower sees it, 1 3 s s; no picture is zeros of that shape."""
        return pixels_of(square)

    def depth(self, square: np.ndarray) -> Tensor:
        """The depth of a square whose shape shall stay, 1 1 h w."""
        return torch.from_numpy(depth_of(self.depth_net, square))[None, None]

    @cached_property
    def no_depth(self) -> Tensor:
        """What stands for a shape that is free, 1 1 h w: in training half of the depth maps were zeros."""
        return torch.zeros(1, 1, self.side, self.side)

    # ------------------------------------------------------------------------------------------ painting

    @cached_property
    def no_tokens(self) -> Tensor:
        """Tokens of no picture, 1 t d."""
        seen = self.clip_pixels(np.zeros((self.side, self.side, 3), np.uint8))
        return self.method.image_tokens(self.image_encoder, torch.zeros_like(seen).to(self.studio.device, self.dtype))

    def pixels_to_latents(self, square: np.ndarray) -> Tensor:
        return encode(self.studio.vae, pixels_of(square)).to(self.dtype)

    def _tokens_of(self, square: np.ndarray) -> Tensor:
        return self.method.tokens(image_states(self.image_encoder, self.clip_pixels(square).to(self.dtype)))

    @torch.no_grad()
    def reference(self, square: np.ndarray) -> Reference:
        """A reference picture s s 3 with whatever is already known of it."""
        key = hashlib.sha256(square.tobytes()).hexdigest() + str(self.uses_tokens)
        if key not in self._references:
            tokens = self._tokens_of(square) if self.uses_tokens else self.no_tokens
            self._references[key] = Reference(self.method.reference_net, self.pixels_to_latents(square), tokens, self.method.reference_timestep)
        self._references.move_to_end(key)
        while len(self._references) > self.kept_references:
            self._references.popitem(last=False)
        return self._references[key]

    @torch.no_grad()
    def paint(
        self, squares: Sequence[Square], seeds: Sequence[int], request: EditRequest, *, on_step: Callable[[Step], None] | None = None
    ) -> list[np.ndarray]:
        """Paint rows with different sources, masks and references together. Returns s s 3 uint8 each."""
        request = request.settled(self.limits)
        device = self.studio.device
        known: dict[int, int] = {}  # reference picture -> its number
        references: list[Reference] = []
        picks, tokens = [], []
        for square in squares:
            if square.reference is None:
                picks.append(-1)
                tokens.append(self.no_tokens)
                continue
            if id(square.reference) not in known:
                known[id(square.reference)] = len(references)
                references.append(self.reference(square.reference))
            number = known[id(square.reference)]
            picks.append(number if self.uses_net else -1)
            tokens.append(references[number].image_tokens)
        told, nothing = torch.cat(tokens), self.no_tokens.expand(len(squares), -1, -1)
        rows = torch.tensor(picks, device=device)
        hidden: dict[tuple[int, int], Tensor] = {}  # several pictures of one source have one collage
        for s in squares:
            if (id(s.source), id(s.mask)) not in hidden:
                hidden[id(s.source), id(s.mask)] = self.pixels_to_latents(np.where(s.mask[..., None], np.uint8(0), s.source))
        collage = torch.cat([hidden[id(s.source), id(s.mask)] for s in squares])
        mask = torch.cat([latent_mask(s.mask) for s in squares]).to(collage)
        depth = torch.cat([self.no_depth if s.depth is None else s.depth for s in squares]).to(collage)
        channels = inpaint_channels(mask, collage, self.method.depth_feature(depth, collage))
        without = inpaint_channels(mask, collage, self.method.depth_feature(torch.zeros_like(depth), collage)) if self.guides_shape else channels
        generators = generators_of(seeds)
        noise = noise_of(generators, tuple(collage.shape[1:])).to(collage)
        guided = request.guidance_scale > 1
        said = Conditioning(told, inpaint=channels)
        if guided:  # what stays the same is laid together once
            said, rows = stacked(Conditioning(nothing, inpaint=without), said), torch.cat([torch.full_like(rows, -1), rows])
        borrows = bool(references) and self.uses_net

        def predicted(latents: Tensor, t: Tensor, index: int) -> Tensor:
            now = replace(said, reference=merged(references, t, rows)) if borrows else said
            return predict(self.method.unet, latents, t, now)

        with self.method.attached(keeps=True):
            step = guided_together(predicted, request.guidance_scale) if guided else predicted
            latents = last_of(step, noise, self.studio.scheduler(request.solver), request.num_steps, generators, on_step)
        return self.studio.decode(latents)

    def num_calls(self, request: EditRequest) -> int:
        """How often the networks run for a region."""
        return calls_of(self.studio.scheduler(request.solver), request.settled(self.limits).num_steps)

    def edit(
        self, source: np.ndarray, regions: Sequence[Region], request: EditRequest | None = None, *, on_step: Callable[[Step], None] | None = None
    ) -> list[np.ndarray]:
        """Paint regions of a picture of any size, one after the other; outside the feathered masks the source's pixels stay, bit for bit.

        Args:
            source: h w 3 uint8.

        Returns:
            `request.num_images` pictures of the source's size.

        Raises:
            InputError: no region, or a picture too small to show anything.
        """
        request = (request or EditRequest()).settled(self.limits)
        if not regions:
            raise InputError("nothing to paint: give a mask and a reference")
        for name, image in (("the source", source), *(("a reference", r.reference) for r in regions)):
            must_show(name, image)
        made = [source] * request.num_images
        seeds = [request.seed + i for i in range(request.num_images)]
        for region in regions:
            _must_fit(region, source)
            reference = resized(reference_square(region, self.side), self.side)
            framings: dict[int, tuple[Square, Window]] = {}  # of each different picture
            for picture in made:
                if id(picture) not in framings:
                    square, inside, window = framed(picture, region.mask, request.context, self.side)
                    framings[id(picture)] = Square(square, inside, reference, self.depth(square) if request.keep_shape else None), window
            window = framings[id(made[0])][1]
            squares = [framings[id(picture)][0] for picture in made]
            parts = [slice(a, a + self.together) for a in range(0, len(squares), self.together)]
            painted = [image for part in parts for image in self.paint(squares[part], seeds[part], request, on_step=on_step)]
            made = [put_back(picture, result, region.mask, window, request) for picture, result in zip(made, painted, strict=True)]
        return made


def framed(picture: np.ndarray, mask: np.ndarray, context: float, side: int = SIDE, at_least: int | None = None) -> tuple[np.ndarray, np.ndarray, Window]:
    """The square that is worked on, what of it is painted (whole cells of the latents, so that a thin line counts), and where it lies.

    Args:
        at_least: pixels of the square in the picture, where it has them; None: as many as are painted, nothing is enlarged.

    Raises:
        InputError: the mask reaches over more pixels than a square of them could hold.
    """
    window = window_around(mask > 0, context, side if at_least is None else at_least)
    if window.side > LARGEST:
        raise InputError(f"the mask and its surroundings are {window.side} pixels wide or high, at most {LARGEST} are painted at once: mask a smaller part")
    return resized(window.crop(picture, 255), side), _painted(mask, window, side), window


def _painted(mask: np.ndarray, window: Window, side: int) -> np.ndarray:
    """What of the square is painted, side side bool."""
    seen = window.crop(mask, 0).astype(np.float32)  # a speck far smaller than a pixel of the square counts too
    return cells_of(cv2.resize(seen, (side, side), interpolation=cv2.INTER_AREA if window.side > side else cv2.INTER_LINEAR))


def _must_fit(region: Region, source: np.ndarray) -> None:
    for what, mask, image in (("mask", region.mask, source), ("reference mask", region.reference_mask, region.reference)):
        if mask is not None and (mask.shape != image.shape[:2] or not mask.any()):
            raise InputError(f"a {what} of {mask.shape[1]} x {mask.shape[0]} does not fit its picture of {image.shape[1]} x {image.shape[0]}, or is empty")


def reference_square(region: Region, side: int = SIDE) -> np.ndarray:
    """The part of the reference to look at, padded to a square with white, as in training; of a very large one a smaller copy.

    Raises:
        InputError: a mask reaches over more pixels than a square of them could hold.
    """
    image, mask = region.reference, region.reference_mask
    zoom = ENOUGH * side / max(image.shape[:2])
    if mask is None and zoom < 1:
        image = cv2.resize(image, (max(1, round(image.shape[1] * zoom)), max(1, round(image.shape[0] * zoom))), interpolation=cv2.INTER_AREA)
    if mask is not None:
        must_show("what the reference mask marks", mask[mask.any(1)][:, mask.any(0)])
        window = window_around(mask > 0, 1.1)
        if window.side > LARGEST:
            raise InputError(f"the reference mask is {window.side} pixels wide or high: mark at most {LARGEST}, or give a smaller picture")
        return window.crop(image, 255)
    side = max(image.shape[:2])
    return Window((image.shape[0] - side) // 2, (image.shape[1] - side) // 2, side).crop(image, 255)


def put_back(picture: np.ndarray, result: np.ndarray, mask: np.ndarray, window: Window, request: EditRequest) -> np.ndarray:
    """A painted square back in its place, through the softened mask."""
    large = resized(result, window.side)
    if request.match_colour:  # measured where nothing was painted, which is less than what the mask leaves
        cells = _painted(mask, window, len(result)).astype(np.uint8)
        painted = cv2.resize(cells, (window.side, window.side), interpolation=cv2.INTER_NEAREST) > 0
        large = colours_matched(large, window.crop(picture, 255), ~painted & (window.crop(np.ones_like(mask), 0) > 0))
    return laid_over(window.put(picture, large), picture, mask, request.feather)
