from xml.etree import ElementTree

import pytest
from records import small_record

from benchmarks import plots, reading


@pytest.mark.parametrize("picture", plots.PICTURES)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_picture_is_drawn_and_the_same_again(device, picture):
    record = small_record(device)
    drawn = plots.svg(record, picture)
    assert drawn == plots.svg(record, picture)
    assert ElementTree.fromstring(drawn).tag.endswith("svg")
    assert plots.mark(record) in drawn.decode()
    assert b"<dc:date>" not in drawn


def test_the_mark_changes_with_the_results():
    record, other = small_record(), small_record()
    other.rows[0].times["ours"].median *= 2
    assert plots.mark(record) != plots.mark(other)
    other = small_record()
    other.date = "another day"
    assert plots.mark(record) == plots.mark(other)


def test_a_record_without_a_suite_lacks_its_picture():
    record = small_record()
    assert list(plots.pictures(record)) == ["scaling", "shares", "speedups"]
    record.rows = [row for row in record.rows if row.suite not in ("scaling", "models")]
    assert list(plots.pictures(record)) == ["shares"]
    record.rows = []
    assert plots.pictures(record) == {}


def test_where_curves_cross():
    linear, square = [(x, 4.0 * x) for x in (1, 2, 8, 32)], [(x, 1.0 * x * x) for x in (1, 2, 8, 32)]
    assert reading.crossing(linear, square) == pytest.approx(4)  # both are straight in logarithms
    assert reading.crossing(linear, square[:3]) == pytest.approx(4)
    assert reading.crossing(linear, square[:2]) is None
    assert reading.crossing(square, linear) is None
    assert reading.crossing([(1, 1.0), (2, 1.0)], [(1, 2.0), (2, 2.0)]) is None  # below from the start
    assert reading.crossing([(1, 2.0), (2, 1.0), (3, 2.0)], [(1, 1.0), (2, 2.0), (3, 1.0)]) is None  # not for good


def test_the_record_made_by_hand_crosses_where_it_must():
    record = small_record()
    # tokens / 64 = (tokens / 128)^2
    assert reading.crossing(reading.curve(record, "ours"), reading.curve(record, "sdpa fused")) == pytest.approx(256)
