"""Numbers with their uncertainty. No network, no paper: embeddings, points and words in, figures out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def bootstrap_interval(
    values: Sequence[float], groups: Sequence[int] | None = None, *, num_draws: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean. NaN for fewer than two values (or groups), which say nothing of their spread.

    Args:
        groups: what each value belongs to; whole groups are drawn, since several pictures of one person are not independent.
    """
    sums, counts = _by_group((values, np.ones(len(values))), groups)
    return _spread(sums, counts, num_draws, seed, level)


def _by_group(columns: Sequence[Sequence[float] | np.ndarray], groups: Sequence[int] | None) -> list[np.ndarray]:
    """Sums of each column over each group."""
    _, member = np.unique(np.arange(len(columns[0])) if groups is None else np.asarray(groups), return_inverse=True)
    return [np.bincount(member, np.asarray(column, np.float64)) for column in columns]


def _spread(upper: np.ndarray, lower: np.ndarray, num_draws: int, seed: int, level: float) -> tuple[float, float]:
    """Percentile bootstrap interval of sum(upper) / sum(lower) over groups; NaN for fewer than two."""
    if len(upper) < 2:
        return float("nan"), float("nan")
    drawn = np.random.default_rng(seed).integers(0, len(upper), (num_draws, len(upper)))
    over, under = upper[drawn].sum(1), lower[drawn].sum(1)
    ratios = over[under > 0] / under[under > 0]  # a draw of nothing but zeros below says nothing of a ratio
    tail = (1 - level) / 2
    return float(np.quantile(ratios, tail)), float(np.quantile(ratios, 1 - tail))


def paired_interval(
    a: Sequence[float], b: Sequence[float], groups: Sequence[int] | None = None, *, num_draws: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of a - b over pairs and its 95 % bootstrap interval.

    Raises:
        ValueError: the sequences differ in length.
    """
    if len(a) != len(b):
        raise ValueError(f"pairs need equal lengths, not {len(a)} and {len(b)}")
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    return (float(difference.mean()), *bootstrap_interval(list(difference), groups, num_draws=num_draws, seed=seed))


def ratio_interval(
    a: Sequence[float], b: Sequence[float], groups: Sequence[int] | None = None, *, num_draws: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float, float]:
    """Mean of a over mean of b, as "so much of the oracle", and its percentile bootstrap interval over pairs. NaN where b is nothing.

    Args:
        groups: as of `bootstrap_interval`.

    Raises:
        ValueError: the sequences differ in length.
    """
    if len(a) != len(b):
        raise ValueError(f"pairs need equal lengths, not {len(a)} and {len(b)}")
    upper, lower = _by_group((a, b), groups)
    if not lower.sum():
        return float("nan"), float("nan"), float("nan")
    return (float(upper.sum() / lower.sum()), *_spread(upper, lower, num_draws, seed, level))


def is_first(probe: np.ndarray | None, gallery: np.ndarray, truth: int) -> bool:
    """Whether the unit gallery row (n d) nearest to the probe (d) is the true one; no face is a miss, and rows of zeros are nobody's."""
    if probe is None or not gallery[truth].any():
        return False
    return int(np.where(gallery.any(1), gallery @ probe, -np.inf).argmax()) == truth


def point_error(found: np.ndarray | None, asked: np.ndarray, face_width: float) -> float:
    """Mean distance of five points over the face's width; NaN when no face was found."""
    if found is None:
        return float("nan")
    return float(np.linalg.norm(np.asarray(found) - asked, axis=1).mean() / face_width)


def copy_paste(made: np.ndarray, reference: np.ndarray, other: np.ndarray) -> float:
    """How much more a picture resembles the very photo it was made from than another photo of the same person, as a share of the room there is.

        (sim(made, reference) - sim(made, other)) / (1 - sim(reference, other))

    0: the person was painted, not the photo; 1: the photo was copied. NaN when both photos look the same to the judge.

    Args:
        made, reference, other: unit vectors d.
    """
    room = 1 - float(reference @ other)
    return float((made @ reference - made @ other) / room) if room > 1e-3 else float("nan")


def is_monotonic(values: Sequence[float], *, rising: bool) -> bool:
    """Whether values never turn back."""
    steps = np.diff(np.asarray(values, np.float64)) * (1 if rising else -1)
    return bool((steps >= 0).all())


def mean(values: Sequence[float]) -> float:
    """Mean of what is not NaN."""
    kept = [v for v in values if not np.isnan(v)]
    return float(np.mean(kept)) if kept else float("nan")


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Distance of two clouds of features (n d), each taken as a Gaussian.

        |mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))        FID (arXiv:1706.08500), Eq. 6

    Raises:
        ValueError: a cloud has fewer than two points.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"{len(a)} and {len(b)} pictures: a Frechet distance needs at least two of each")
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    ca, cb = np.atleast_2d(np.cov(a, rowvar=False)), np.atleast_2d(np.cov(b, rowvar=False))
    values, vectors = np.linalg.eigh(ca)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    both = np.sqrt(np.linalg.eigvalsh(root @ cb @ root).clip(0)).sum()  # C_a C_b has the eigenvalues of C_a^(1/2) C_b C_a^(1/2)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca) + np.trace(cb) - 2 * both)
