"""One identity for all methods: embeddings of one or more photos, with all that must not be mixed up."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

FORMAT = "selfsame-identity-1"


@dataclass(frozen=True)
class Identity:
    """Who to paint. A plain value, accepted by generate, edit and evaluate alike.

    Attributes:
        embeddings: k 512 float32, raw (not normalised), one row a photo.
        encoder: name of the face encoder they come from; identities of different encoders do not mix.
        kps: k 5 2 pixels in each photo.
        sizes: k 2 (height, width) of each photo.
        sources: sha256 of each photo's pixels.
        consent: a note on whose picture this is and by what right, or "".
    """

    embeddings: np.ndarray
    encoder: str
    kps: np.ndarray
    sizes: np.ndarray
    sources: tuple[str, ...]
    consent: str = ""

    def __post_init__(self) -> None:
        k = len(self.sources)
        if k == 0:
            raise ValueError("an identity needs at least one photo")
        if self.embeddings.ndim != 2 or len(self.embeddings) != k or self.kps.shape != (k, 5, 2) or self.sizes.shape != (k, 2):
            raise ValueError(
                f"{k} sources need embeddings (k, d), kps (k, 5, 2) and sizes (k, 2), not {self.embeddings.shape}, {self.kps.shape}, {self.sizes.shape}"
            )
        if not np.isfinite(self.embeddings).all():
            raise ValueError("an embedding is not finite")

    @property
    def num_photos(self) -> int:
        return len(self.sources)

    def joined(self, *others: Identity) -> Identity:
        """The same person from more photos.

        Raises:
            ValueError: another encoder made one of them.
        """
        for other in others:
            if other.encoder != self.encoder:
                raise ValueError(f"identities of encoder {self.encoder!r} and {other.encoder!r} cannot be mixed: embed all photos with one encoder")
        every = (self, *others)
        return Identity(
            np.concatenate([i.embeddings for i in every]),
            self.encoder,
            np.concatenate([i.kps for i in every]),
            np.concatenate([i.sizes for i in every]),
            tuple(s for i in every for s in i.sources),
            self.consent,
        )

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, atomically."""
        path = Path(path)
        about = {"format": FORMAT, "encoder": self.encoder, "sources": json.dumps(self.sources), "consent": self.consent}
        partial = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            arrays = {"embeddings": self.embeddings.astype(np.float32), "kps": self.kps.astype(np.float32), "sizes": self.sizes.astype(np.int64)}
            save_file(arrays, partial, metadata=about)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        return path

    @classmethod
    def load(cls, path: str | Path) -> Identity:
        """Read what `save` wrote.

        Raises:
            ValueError: not an identity file; the message names it.
        """
        path = Path(path)
        try:
            with safe_open(path, "np") as f:
                about = f.metadata() or {}
                if about.get("format") != FORMAT:
                    raise ValueError(f"{path}: not a selfsame identity; make one with `Identity.save`")
                arrays = {k: f.get_tensor(k) for k in ("embeddings", "kps", "sizes")}
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path}: cannot be read as an identity ({error})") from None
        return cls(arrays["embeddings"], about["encoder"], arrays["kps"], arrays["sizes"], tuple(json.loads(about["sources"])), about["consent"])
