"""Everybody who stands in a batch of pictures: their tokens, drawings, places and strengths, step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from selfsame.methods.instantid.method import InstantID
from selfsame.studio.request import Strengths
from selfsame.values.conditioning import Conditioning, FaceCondition, SpatialCondition

DrawKps = Callable[[int, int, np.ndarray], np.ndarray]  # height, width, key points 5 2, or as many as the method draws -> h w 3 uint8
Act = tuple[tuple[int, ...], tuple[int, ...]]  # the faces that act in a step: in the Image Adapter, in IdentityNet


@dataclass(frozen=True)
class Shown:
    """A face in a picture to be."""

    embedding: Tensor  # 1 k 512
    kps: np.ndarray  # 5 2 pixels; 68 2 for an IdentityNet that learned from dense points
    region: np.ndarray | None = None  # h w in [0, 1], the picture's size: where the face may act; None: everywhere
    strengths: Strengths = field(default_factory=Strengths)


@dataclass(frozen=True)
class Crowd:
    """The faces of all rows, one after the other."""

    rows: Tensor  # m, the row each stands in
    tokens: Tensor  # m n c
    nobody: Tensor  # m n c: what guidance runs against, tokens of as many photos of zeros
    drawings: Tensor  # m 3 H W
    regions: Tensor | None  # m 1 H W
    strengths: tuple[Strengths, ...]
    count: int  # rows of the batch
    net_reads_text: bool = False  # whether IdentityNet sees the text instead of the faces

    @classmethod
    def of(cls, rows: Sequence[Sequence[Shown]], size: tuple[int, int], method: InstantID, draw_kps: DrawKps, dtype: torch.dtype) -> Crowd:
        """Everybody, read and drawn once.

        Args:
            rows: who stands in each row.
            size: height and width of the pictures.
            dtype: of drawings and regions.
        """
        everyone = [(i, face) for i, row in enumerate(rows) for face in row]
        device = next(method.parameters()).device
        tokens = torch.cat([method.tokens(face.embedding.to(device)) for _, face in everyone])
        nobody = torch.cat([method.no_face(1, face.embedding.shape[1]) for _, face in everyone])
        drawings = torch.from_numpy(np.stack([draw_kps(*size, face.kps) for _, face in everyone])).permute(0, 3, 1, 2).float() / 255
        regions = None
        if any(face.region is not None for _, face in everyone):
            masks = [np.ones(size, np.float32) if face.region is None else face.region for _, face in everyone]
            regions = torch.from_numpy(np.stack(masks)[:, None]).to(device, dtype)
        at = torch.tensor([i for i, _ in everyone], device=device)
        return cls(
            at, tokens, nobody, drawings.to(device, dtype), regions, tuple(face.strengths for _, face in everyone), len(rows), method.net_reads == "text"
        )

    def act(self, index: int, num_steps: int) -> Act:
        """Who acts in a step. A face whose strength is 0 there is left out altogether."""
        at = [s.at(index, num_steps) for s in self.strengths]
        return tuple(i for i, (adapter, _) in enumerate(at) if adapter), tuple(i for i, (_, control) in enumerate(at) if control)

    def joined(self, said: Conditioning, act: Act, *, guided: bool) -> Conditioning:
        """What the text says, with the acting faces beside it.

        Args:
            guided: the rows come twice, first those that guidance runs against, where nobody stands.
        """
        adapter = [self.strengths[i].adapter_scale for i in act[0]]
        control = [self.strengths[i].controlnet_scale for i in act[1]]
        face = spatial = None
        if act[0]:
            tokens, scale, regions, rows, _ = self._some(act[0], adapter, guided)
            face = FaceCondition(tokens, scale, regions, rows)
        if act[1]:
            tokens, scale, regions, rows, which = self._some(act[1], control, guided)
            if self.net_reads_text:
                tokens = said.encoder_hidden_states if rows is None else said.encoder_hidden_states[rows]
            spatial = SpatialCondition(self.drawings[which], tokens, scale, regions, rows)
        return Conditioning(said.encoder_hidden_states, said.pooled, said.time_ids, face, spatial)

    def _some(self, faces: tuple[int, ...], scales: list[float], guided: bool) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor]:
        """Tokens, strengths, regions and rows of some faces, and which they are; no rows when one face stands in each, in order."""
        which, scale = torch.tensor(faces, device=self.rows.device), torch.tensor(scales, device=self.rows.device)
        rows, tokens = self.rows[which], self.tokens[which]
        if guided:
            tokens, rows = torch.cat([self.nobody[which], tokens]), torch.cat([rows, rows + self.count])
            which, scale = which.repeat(2), scale.repeat(2)
        one_each = rows.tolist() == list(range(self.count * (2 if guided else 1)))
        return tokens, scale, None if self.regions is None else self.regions[which], None if one_each else rows, which
