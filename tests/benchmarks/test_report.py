import re
from dataclasses import replace

import pytest
from records import small_record

from benchmarks import report, tables
from benchmarks.cases import ORDERS
from benchmarks.record import Timing, save

PAGE = "Before.\n\n<!-- report: summary -->\nstale\n<!-- end of report -->\n\nAfter.\n"


@pytest.fixture
def checkout(tmp_path):
    """Pages and a results file, as in a checkout; the folder of the results."""
    (tmp_path / "docs").mkdir()
    for path in report.PAGES:
        (tmp_path / path).write_text(PAGE)
    save(small_record(), tmp_path / "results" / "cpu-a.json")
    return tmp_path


def cells(block, start):
    """Those of the row that starts so."""
    return next(line.strip("| ").split(" | ") for line in block.splitlines() if line.startswith(f"| {start}"))


def test_the_summary_is_short_and_true():
    summary = tables.summary({"cpu-a": small_record()}, "")
    assert cells(summary, "A CPU, 2 threads, AVX-512, float32: times as fast")[1:] == list(ORDERS)
    assert cells(summary, "`additive_attention`")[1:] == ["3.0x"] * 3
    assert cells(summary, "… as plain torch compiled, at 2×8×16×4")[1:] == ["2.5x", "2.5x", "cannot"]
    assert cells(summary, "… share of the byte bound")[1:] == ["0.50"] * 3
    assert cells(summary, "`LadaAttention`, D = 64 … 1024")[1:] == ["1.25–1.50x"] * 3
    assert cells(summary, "… as fused")[1:] == ["2.50x", "2.50x", "cannot"]
    assert cells(summary, "… as linear")[1:] == ["2.00x"] * 3
    assert cells(summary, "… saved")[2] == "50%"
    assert cells(summary, "LadaGAN, 64 pixels")[1:3] == ["float32 1.25x", "bfloat16 2.00x"]
    assert summary.endswith(tables.NO_GPU)


def test_a_gpu_is_shown_once_it_is_measured():
    records = {"cpu-a": small_record(), "cuda-b": small_record("cuda")}
    for name, block in tables.BLOCKS.items():
        text = block(records, "figures/")
        assert tables.NO_GPU not in text
        assert "A GPU" in text or "cuda-b" in text, name
    summary = tables.summary(records, "")
    assert "A GPU, float32, backend `cuda`: times as fast" in summary
    assert "cuda float32 1.25x | cuda bfloat16 2.00x" in summary


@pytest.mark.parametrize("name", tables.BLOCKS)
def test_without_results_no_block_claims_any(name):
    assert tables.BLOCKS[name]({}, "figures/") in (tables.NO_GPU, "")


def test_every_time_of_ours_is_in_the_complete_tables():
    record = small_record("cuda")
    for suite in record.suites:
        text = tables.BLOCKS[suite]({"cuda-a": record}, "")
        for row in (row for row in record.rows if row.suite == suite):
            for name in ("cuda", "triton", "cuda float32", "triton bfloat16"):
                assert name not in row.times or tables.duration(row.times[name]) in text


def test_who_has_no_time_is_named_with_the_reason():
    record = small_record()
    record.rows[0] = replace(record.rows[0], times={}, refused="wrong result")
    text = tables.BLOCKS["ops"]({"cpu-a": record}, "")
    assert "- Refused, additive_attention 2x8x16x4 float32 forward: wrong result" in text
    assert "- No time for compiled in 2 cases (double backward): RuntimeError: not twice" in text
    assert "Refused a time: 1 of" in tables.summary({"cpu-a": record}, "")


def test_numbers_as_they_are_shown():
    assert tables.duration(Timing(1.234e-5, 1.2e-5, 1.3e-5, 3)) == "12.3 µs (12.0–13.0)"
    assert tables.duration(Timing(1.5e-3, 1e-3, 2e-3, 3)) == "1.50 ms (1.00–2.00)"
    assert tables.duration(Timing(12.0, 11.0, 13.0, 3)) == "12.0 s (11.0–13.0)"
    assert [tables.digits(value) for value in (0.5, 9.999, 123.4, 12345)] == ["0.500", "10.0", "123", "12,345"]
    assert tables.mebibytes(None) == "–"


def test_writing_brings_up_to_date_what_checking_names(checkout):
    results = checkout / "results"
    picture = checkout / report.FIGURES / "cpu-a-scaling.svg"
    pages = [str(path) for path in report.PAGES]
    assert report.outdated(checkout, results)[:2] == pages
    report.write(checkout, results)
    assert report.outdated(checkout, results) == []
    text = (checkout / "README.md").read_text()
    assert text.startswith("Before.\n")
    assert text.endswith("After.\n")
    assert "stale" not in text
    assert "3.0x" in text

    written = {path: path.read_bytes() for path in checkout.rglob("*.*")}
    report.write(checkout, results)
    assert {path: path.read_bytes() for path in checkout.rglob("*.*")} == written

    picture.write_text(picture.read_text().replace("drawn from", "drawn long ago from"))
    (checkout / report.FIGURES / "cpu-gone-scaling.svg").write_text("")
    assert report.outdated(checkout, results) == ["docs/figures/cpu-a-scaling.svg", "docs/figures/cpu-gone-scaling.svg"]
    other = small_record()
    other.rows[0].times["ours"] = other.rows[0].times["plain"]
    save(other, results / "cpu-a.json")
    assert set(pages) < set(report.outdated(checkout, results))
    (results / "cpu-a.json").unlink()
    report.write(checkout, results)
    assert list((checkout / report.FIGURES).iterdir()) == []
    assert (checkout / "README.md").read_text() == PAGE.replace("stale", tables.NO_GPU)


def test_pictures_are_linked_from_where_the_page_is(checkout):
    for path in report.PAGES:
        (checkout / path).write_text(PAGE.replace("summary", "scaling-figure"))
    report.write(checkout, checkout / "results")
    for path in report.PAGES:
        (link,) = re.findall(r"\]\((.*)\)", (checkout / path).read_text())
        assert (checkout / path.parent / link).is_file()


def test_an_unknown_block_is_named(checkout):
    (checkout / "README.md").write_text(PAGE.replace("summary", "sumary"))
    with pytest.raises(ValueError, match=r"README\.md: got a block 'sumary'"):
        report.outdated(checkout, checkout / "results")


def test_a_file_of_another_form_is_named(checkout):
    (checkout / "results" / "old.json").write_text('{"sections": []}')
    with pytest.raises(ValueError, match=r"old\.json: expected"):
        report.write(checkout, checkout / "results")
