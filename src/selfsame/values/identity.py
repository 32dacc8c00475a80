"""One identity for all methods: embeddings of one or more photos, with all that must not be mixed up."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

FORMAT = "selfsame-identity-1"


@dataclass(frozen=True)
class LearnedWords:
    """A person as words that stand in a prompt where a name would, for every model with the same text tower.

    Attributes:
        vectors: n d float32 for each text tower (SDXL has two), rows of the token table that never were.
        placeholder: what stands for them in a prompt, such as `<ada>`.
        text_encoder: which tower(s) they were learned for, `models.text.tower_hash`.
        about: how they were learned: base model, steps, seed.
    """

    vectors: tuple[np.ndarray, ...]
    placeholder: str
    text_encoder: str
    about: Mapping[str, str | int | float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"<[a-z0-9][a-z0-9_-]*>", self.placeholder):
            raise ValueError(f"placeholder {self.placeholder!r}: give letters, digits, - and _ between angle brackets, such as <ada>")
        if not self.vectors or any(v.ndim != 2 or len(v) != len(self.vectors[0]) or not len(v) for v in self.vectors):
            raise ValueError(f"learned words need one array (n, d) a text tower, all of the same n, not {[v.shape for v in self.vectors]}")
        if not all(np.isfinite(v).all() for v in self.vectors):
            raise ValueError("a learned word is not finite")

    @property
    def num_words(self) -> int:
        return len(self.vectors[0])

    @property
    def digest(self) -> str:
        """Which words these are: a hash of their placeholder and numbers."""
        said = hashlib.sha256(self.placeholder.encode())
        for vector in self.vectors:
            said.update(vector.tobytes())
        return said.hexdigest()


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
        words: the person as learned words; with them an identity may lack photos.
    """

    embeddings: np.ndarray
    encoder: str
    kps: np.ndarray
    sizes: np.ndarray
    sources: tuple[str, ...]
    consent: str = ""
    words: LearnedWords | None = None

    def __post_init__(self) -> None:
        k = len(self.sources)
        if k == 0 and self.words is None:
            raise ValueError("an identity needs at least one photo, or learned words")
        if self.embeddings.ndim != 2 or len(self.embeddings) != k or self.kps.shape != (k, 5, 2) or self.sizes.shape != (k, 2):
            raise ValueError(
                f"{k} sources need embeddings (k, d), kps (k, 5, 2) and sizes (k, 2), not {self.embeddings.shape}, {self.kps.shape}, {self.sizes.shape}"
            )
        if not np.isfinite(self.embeddings).all():
            raise ValueError("an embedding is not finite")

    @classmethod
    def of_words(cls, words: LearnedWords) -> Identity:
        """Somebody known by learned words alone."""
        return cls(np.zeros((0, 512), np.float32), "", np.zeros((0, 5, 2), np.float32), np.zeros((0, 2), np.int64), (), words=words)

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
            self.words,
        )

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, atomically."""
        path = Path(path)
        about = {"format": FORMAT, "encoder": self.encoder, "sources": json.dumps(self.sources), "consent": self.consent}
        partial = path.with_name(f".{path.name}.{os.getpid()}.part")
        arrays = {"embeddings": self.embeddings.astype(np.float32), "kps": self.kps.astype(np.float32), "sizes": self.sizes.astype(np.int64)}
        if self.words is not None:
            arrays |= {f"words.{i}": v.astype(np.float32) for i, v in enumerate(self.words.vectors)}
            about["words"] = json.dumps({"placeholder": self.words.placeholder, "text_encoder": self.words.text_encoder, "about": dict(self.words.about)})
        try:
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
                arrays = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
            words = None
            if "words" in about:
                said = json.loads(about["words"])
                vectors = tuple(arrays[f"words.{i}"] for i in range(sum(k.startswith("words.") for k in arrays)))
                words = LearnedWords(vectors, said["placeholder"], said["text_encoder"], said["about"])
            photos = (arrays["embeddings"], about["encoder"], arrays["kps"], arrays["sizes"], tuple(json.loads(about["sources"])), about["consent"])
        except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path}: cannot be read as an identity ({error})") from None
        return cls(*photos, words)


def is_identity(path: str | Path) -> bool:
    """Whether a file says that it is an identity; it may still be damaged."""
    try:
        with safe_open(Path(path), "np") as f:
            return (f.metadata() or {}).get("format") == FORMAT
    except (SafetensorError, OSError):
        return False


def mixed(people: Sequence[Identity], shares: Sequence[float], how: str = "linear") -> Identity:
    """Somebody between others: their mean embeddings, weighed.

    linear:     sum of w_i e_i, w normalised to 1
    spherical:  along the great circle between two unit embeddings, with the length going linearly from one to the other
    even:       the direction of sum of sqrt(w_i) e_i / |e_i|, with the length as in spherical: strangers' embeddings are nearly at right angles, so that the
                squared cosine to each is about its share, and equal steps look equally large

    Key points are the first person's; the source is a hash of everybody's.

    Raises:
        ValueError: people of different encoders or without photos, shares that are negative or all zero, another way, or a spherical mix of
            more or fewer than two people.
    """
    if not people or len(people) != len(shares):
        raise ValueError(f"{len(people)} people and {len(shares)} shares: give each person a share")
    if any(not who.num_photos for who in people):
        raise ValueError("somebody without a photo cannot be mixed")
    if len({who.encoder for who in people}) > 1:
        raise ValueError(f"identities of different encoders cannot be mixed: {', '.join(sorted({w.encoder for w in people}))}; embed all photos with one")
    if not np.isfinite(shares).all() or min(shares) < 0 or sum(shares) == 0:
        raise ValueError(f"shares {', '.join(f'{s:g}' for s in shares)}: give numbers from 0, at least one above")
    weights = np.asarray(shares, np.float64) / sum(shares)
    rows = np.stack([who.embeddings.mean(0) for who in people]).astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1)
    if how == "linear":
        row = weights @ rows
    elif how == "even":
        row = np.sqrt(weights / lengths**2) @ rows
        row *= (weights @ lengths) / np.linalg.norm(row)
    elif how == "spherical":
        if len(people) != 2:
            raise ValueError(f"a spherical mix goes from one person to another, not among {len(people)}")
        a, b = rows / lengths[:, None]
        angle = np.arccos(np.clip(a @ b, -1, 1))
        unit = a if angle < 1e-6 else (np.sin(weights[0] * angle) * a + np.sin(weights[1] * angle) * b) / np.sin(angle)
        row = unit * (weights @ lengths)
    else:
        raise ValueError(f"mix {how!r}: choose linear, spherical or even")
    first = people[0]
    sources = (hashlib.sha256("".join(s for who in people for s in who.sources).encode()).hexdigest(),)
    return Identity(row[None].astype(np.float32), first.encoder, first.kps[:1], first.sizes[:1], sources)
