"""Figures that can be checked by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from selfsame.evaluation.metrics import bootstrap_interval, is_first, mean, paired_interval, point_error, ratio_interval
from selfsame.evaluation.report import Report, Row, span, text_table, with_span, write_report


def test_intervals_hold_the_mean_and_shrink_with_data():
    few, many = (np.random.default_rng(0).normal(3, 1, n) for n in (20, 2000))
    wide, narrow = bootstrap_interval(few), bootstrap_interval(many)
    assert wide[0] < few.mean() < wide[1]
    assert narrow[1] - narrow[0] < (wide[1] - wide[0]) / 5
    assert all(math.isnan(v) for v in bootstrap_interval([]))


def test_pairs_see_a_difference_that_the_spread_would_hide():
    spread = np.random.default_rng(1).normal(0, 10, 200)
    middle, low, high = paired_interval(list(spread + 0.5), list(spread))
    assert middle == pytest.approx(0.5)
    assert low == pytest.approx(high)
    with pytest.raises(ValueError, match="equal lengths"):
        paired_interval([1], [1, 2])


def test_a_picture_without_a_face_is_a_miss():
    gallery = np.eye(3)
    assert is_first(np.array([0.1, 0.9, 0.0]), gallery, 1)
    assert not is_first(np.array([0.1, 0.9, 0.0]), gallery, 0)
    assert not is_first(None, gallery, 0)
    gallery[0] = 0  # a portrait in which the judge finds nobody
    assert not is_first(np.array([-1.0, -0.9, -0.8]), gallery, 0)
    assert is_first(np.array([-1.0, -0.9, -0.8]), gallery, 2)


def test_point_error_is_a_share_of_the_face():
    asked = np.zeros((5, 2))
    assert point_error(asked + np.array([3, 4]), asked, 50) == pytest.approx(0.1)
    assert math.isnan(point_error(None, asked, 50))
    assert mean([1, float("nan"), 3]) == 2


def test_the_page_stands_alone(tmp_path):
    image = np.zeros((4, 4, 3), np.uint8)
    report = Report("t <x>", {"a": 1}, [Row("r", {"rank-1": 0.5, "ci": "a..b"})], (), ("note",), (("row", (image,)),))
    _, page = write_report(report, tmp_path)
    text = page.read_text()
    assert "data:image/png;base64" in text
    assert "http" not in text
    assert "t &lt;x&gt;" in text
    assert "0.500" in text_table(report.rows)


def test_one_person_has_no_interval():
    assert all(math.isnan(v) for v in bootstrap_interval([0.1, 0.9, 0.4], [7, 7, 7]))
    assert span(*bootstrap_interval([0.1, 0.9, 0.4], [7, 7, 7])) == "-"


def test_reports_are_json_that_every_parser_reads(tmp_path):
    path, _ = write_report(Report("t", {"a": float("nan")}, [Row("r", {"x": float("nan")})]), tmp_path)

    def refuse(name: str) -> None:
        raise AssertionError(name)

    assert json.loads(path.read_text(), parse_constant=refuse)["rows"][0]["columns"] == {"x": None}


def test_a_share_of_the_oracle_is_paired():
    """Half of what the oracle hits is half, whatever the people; nothing over nothing is no number."""
    oracle = [1.0, 0.0, 1.0, 1.0] * 10
    middle, low, high = ratio_interval([x / 2 for x in oracle], oracle, list(range(40)))
    assert (middle, low, high) == pytest.approx((0.5, 0.5, 0.5))
    assert all(math.isnan(v) for v in ratio_interval([0.0, 0.0], [0.0, 0.0]))
    assert ratio_interval([1.0, 1.0], [1.0, 0.0])[2] <= 2, "draws of nothing but what the oracle missed are left out"
    with pytest.raises(ValueError, match="equal lengths"):
        ratio_interval([1.0], [1.0, 0.0])


def test_one_pair_has_a_difference_and_no_interval():
    assert with_span(paired_interval([0.5], [0.25]), "people") == "+0.250 (no interval)"
    assert with_span(ratio_interval([1.0, 0.0], [1.0, 1.0])) == "0.500 (0.000 to 1.000)"
    low, high = bootstrap_interval([1.0, -1.0])
    assert with_span(paired_interval([1.0, 0.0], [0.0, 1.0]), "people") == f"+0.000 ({low:+.3f} to {high:+.3f}, paired over people)"
