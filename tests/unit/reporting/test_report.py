from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from amlp.errors import ListedError
from amlp.files import read_json, write_json
from amlp.params import Params, parse_params
from amlp.reporting.report import report
from tests.support.records import registration_of
from tests.support.stage_outputs import write_stage_outputs

EVIL = "<script>alert('x')</script>"
VOID = {"br", "img", "link", "meta"}


class Page(HTMLParser):
    """Collects a page's elements and checks that what opens is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("outputs")
    write_stage_outputs(root, labels=("benign", EVIL))
    write_json(root / "registration.json", registration_of())
    return root


@pytest.fixture(scope="module")
def written(outputs: Path) -> tuple[str, Page]:
    return write(outputs)


@pytest.fixture
def root(outputs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(outputs, tmp_path / "root"))


def write(root: Path, params: Params | None = None) -> tuple[str, Page]:
    report(params=params or Params(), root=root, out=root / "report.html")
    text = (root / "report.html").read_text(encoding="utf-8")
    return text, Page(text)


def test_page_needs_nothing_but_itself(written: tuple[str, Page]) -> None:
    text, page = written
    assert not re.search(r"https?:|[\"'(]//", re.sub(r"data:image/[^\"]*", "", text))
    assert page.all("script") == [] and page.all("link") == []
    assert all((image["src"] or "").startswith("data:image/") for image in page.all("img"))
    assert "url(#" in text or "xlink:href" in text
    assert set(re.findall(r"(?:url\(|href=\")(.)", text)) == {"#"}
    (policy,) = (meta for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in (policy["content"] or "")
    assert len(text) < 5_000_000


def test_names_from_the_data_are_text_only(written: tuple[str, Page]) -> None:
    text, page = written
    assert "<script" not in text
    assert EVIL in page.text


def test_every_picture_has_words_for_those_who_cannot_see_it(written: tuple[str, Page]) -> None:
    _, page = written
    charts = page.all("svg")
    assert len(page.all("img")) == 6 and all(image["alt"] for image in page.all("img"))
    assert len(charts) == 8 and all(chart["role"] == "img" and chart["aria-label"] for chart in charts)
    assert page.all("html")[0]["lang"] == "en"


def test_ids_are_unique_and_links_lead_somewhere(written: tuple[str, Page]) -> None:
    text, page = written
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', text)) <= set(ids)
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(ids)


def test_same_outputs_give_the_same_bytes(root: Path, written: tuple[str, Page]) -> None:
    assert write(root)[0] == written[0]


def test_headline_table_and_lineage_show_the_figures(written: tuple[str, Page]) -> None:
    _, page = written
    assert "the segmenter's mean DSC is 0.830 (95% interval 0.800 to 0.860)" in page.text
    assert "pre-training reaches 0.780, and the best single grey-value threshold reaches 0.310" in page.text
    order = [page.text.index(f"DSC, {model}") for model in ("segmenter", "from scratch", "threshold")]
    assert order == sorted(order)
    assert "Pre-training did better than the same network trained from scratch: DSC +0.050" in page.text
    for value in ("e" * 32 + ".dir", "f" * 40, "0" * 64, "1" * 64, "version 3"):
        assert value in page.text
    assert "models:/amlp-segmenter/3" in page.text
    assert "Files differed from this commit" in page.text


def test_interval_decides_what_is_said_of_a_difference(root: Path) -> None:
    summary = read_json(root / "evaluation/summary.json")
    summary["paired"]["segmenter-scratch"]["dsc"] |= {"mean": 0.03, "low": -0.01, "high": 0.07}
    summary["paired"]["segmenter-threshold"]["dsc"] |= {"mean": -0.05, "low": -0.09, "high": -0.01}
    write_json(root / "evaluation/summary.json", summary)
    text = write(root)[1].text
    assert "Pre-training made no clear difference" in text and "−0.010 to +0.070, which includes 0" in text
    assert "The segmenter did worse than the best single threshold" in text
    assert "did better" not in text


def test_failed_premise_is_said(root: Path) -> None:
    file = root / "models/encoder/diagnostics.csv"
    table = pd.read_csv(file)
    table.assign(error_lesion=2 * table["error_background"]).to_csv(file, index=False)
    text = write(root)[1].text
    assert "find 61% of the lesion patches; lesion is 2.60 times as frequent" in text
    assert "Lesion patches are harder to reconstruct than background: 2.00 times" in text
    assert "premise" not in text and "no better than chance" not in text
    table.assign(error_lesion=0.8 * table["error_background"]).to_csv(file, index=False)
    metrics = read_json(root / "data/shards/metrics.json")
    metrics["scores"] |= {"enrichment": 1.1, "enrichment_low": 0.9, "enrichment_high": 1.3}
    write_json(root / "data/shards/metrics.json", metrics)
    text = write(root)[1].text
    assert "the premise of RRL and CCL fails" in text
    assert "no better than chance" in text and "pretrain.mps.enabled" in text
    del metrics["scores"]
    write_json(root / "data/shards/metrics.json", metrics)
    assert "Do the scores find lesions?" not in write(root)[1].text


def test_the_probe_stands_beside_what_it_was_before_training(root: Path, written: tuple[str, Page]) -> None:
    [chart] = [svg for svg in written[1].all("svg") if "AUC of lesion patches" in (svg["aria-label"] or "")]
    assert "in training: 0.6 at first, 0.8 at last; untrained: 0.61" in (chart["aria-label"] or "")
    file = root / "models/encoder/diagnostics.csv"
    pd.read_csv(file).assign(probe_auc=np.nan).to_csv(file, index=False)
    text, page = write(root)
    assert "AUC of lesion patches" not in text and len(page.all("svg")) == 7


def test_page_without_what_is_optional(root: Path) -> None:
    (root / "registration.json").unlink()
    shutil.rmtree(root / "models/scratch")
    shutil.rmtree(root / "models/encoder/pictures")
    shutil.rmtree(root / "evaluation/overlays")
    # Pre-training on a data set without masks writes no columns that need them.
    diagnostics = pd.read_csv(root / "models/encoder/diagnostics.csv")
    diagnostics[["epoch", "agreement"]].to_csv(root / "models/encoder/diagnostics.csv", index=False)
    summary = read_json(root / "evaluation/summary.json")
    del summary["models"]["scratch"], summary["paired"]["segmenter-scratch"]
    write_json(root / "evaluation/summary.json", summary)
    _, page = write(root)
    assert page.all("img") == []
    assert "from scratch" not in page.text
    assert "not registered" in page.text


def test_undefined_figures_show_as_a_dash(root: Path) -> None:
    summary = read_json(root / "evaluation/summary.json")
    summary["models"]["threshold"]["ppv"] = {"mean": None, "low": None, "high": None, "undefined": 6}
    write_json(root / "evaluation/summary.json", summary)
    text, page = write(root)
    assert "–" in page.text
    assert "HD95 is undefined for 6 (segmenter)" in page.text
    assert "None" not in json.dumps(page.words) and "nan" not in text


def test_large_pictures_are_made_to_fit(root: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (600, 900, 3), dtype=np.uint8)
    for name in ("best", "median", "worst"):
        Image.fromarray(noise).save(root / f"evaluation/overlays/{name}.png", compress_level=0)
    assert 3 * (root / "evaluation/overlays/best.png").stat().st_size > 4_500_000, "as they are, they wouldn't fit"
    text, page = write(root)
    assert len(text) < 5_000_000
    assert sum((image["src"] or "").startswith("data:image/jpeg") for image in page.all("img")) == 3


def test_missing_outputs_are_all_named(tmp_path: Path) -> None:
    with pytest.raises(ListedError) as caught:
        report(params=Params(), root=tmp_path, out=tmp_path / "report.html")
    assert "evaluation/summary.json" in caught.value.problems and len(caught.value.problems) == 7
    assert not (tmp_path / "report.html").exists()


def test_page_is_written_although_mlflow_is_gone(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(root)
    assert "Not attached" in capsys.readouterr().out
    assert not (root / "mlflow.db").exists()


def test_own_images_are_called_by_their_folder_and_its_place_is_not_shown(root: Path) -> None:
    params = parse_params({"ingest": {"source": "busi", "path": "/srv/hospital-7/thyroid"}}, "test")
    text, page = write(root, params)
    assert page.text.count("thyroid") >= 2 and "BUSI" not in page.text
    assert "hospital-7" not in text


@pytest.mark.parametrize(
    ("patients", "without", "expected"),
    [
        (12, 0, "A group is all images of one patient and their near-duplicates"),
        (0, 12, "No patient is known: images of one patient may be in several groups and splits"),
        (5, 7, "The patient of 7 images is not known"),
    ],
)
def test_the_page_says_what_a_group_is(root: Path, patients: int, without: int, expected: str) -> None:
    write_json(root / "data/ingest/summary.json", {"patients": patients, "without_patient": without})
    assert expected in write(root)[1].text


@pytest.mark.parametrize(("tokens", "shown"), [(9_800, "9,800 visible"), (12_340_000, "12.3 million visible")])
def test_few_patches_are_not_zero_millions(root: Path, tokens: int, shown: str) -> None:
    file = root / "models/encoder/history.csv"
    pd.read_csv(file).assign(visible_tokens=tokens).to_csv(file, index=False)
    assert shown in write(root)[1].text
