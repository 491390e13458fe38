from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from amlp.cli import main
from amlp.data.labels import labelled_subset, unused_labels
from amlp.data.shards import cases_digest
from amlp.errors import UserError
from amlp.evaluation.evaluate import evaluate, evaluate_models, score_cases
from amlp.files import read_json, write_json
from amlp.models.checkpoint import save
from amlp.models.encoder import EncoderPlan
from amlp.models.predictor import Predictor
from amlp.models.segmenter import Segmenter
from amlp.params import EvaluateParams

PARAMS = EvaluateParams(bootstrap_samples=200)
SIDE = 24  # of a shard's images; native images are larger


def _picture(lesion: bool, seed: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), dtype=bool)
    if lesion:
        top, left = rng.integers(5, 15, size=2)
        mask[top : top + 10, left : left + 12] = True
    return np.where(mask, 40, 140).astype(np.uint8) + rng.integers(0, 20, mask.shape).astype(np.uint8), mask


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Folders `ingest` and `shards` of eight training and ten test cases; the last test case has no mask."""
    rows, shapes = [], [(40, 50), (36, 36), (50, 40)]
    for folder in ("ingest/images", "ingest/masks", "shards"):
        (tmp_path / folder).mkdir(parents=True)
    for split, count in (("train", 8), ("test", 10)):
        images, masks = [], []
        for row in range(count):
            lesion, labelled = row % 4 != 3, (split, row) != ("test", 9)
            height, width = shapes[row % 3]
            case_id = f"{split}_{row:02d}"
            image, mask = _picture(lesion, len(rows), height, width)
            picture, shape = Image.fromarray(image), (SIDE, SIDE)
            picture.save(tmp_path / f"ingest/images/{case_id}.png")
            images.append(np.asarray(picture.resize(shape))[None])
            masks.append(np.asarray(Image.fromarray(mask).resize(shape), dtype=np.uint8))
            if labelled:
                Image.fromarray(mask).convert("L").save(tmp_path / f"ingest/masks/{case_id}.png")
            rows.append(
                {
                    "case_id": case_id,
                    "split": split,
                    "group": 100 * (split == "test") + row // 2,
                    "label": "lesion" if lesion else "normal",
                    "labelled": labelled,
                    "shard": 0,
                    "row": row,
                    "image": f"images/{case_id}.png",
                    "mask": f"masks/{case_id}.png" if labelled else None,
                    "height": height,
                    "width": width,
                    "lesion_fraction": mask.mean(),
                }
            )
        np.save(tmp_path / f"shards/{split}-images-00000.npy", np.stack(images))
        np.save(tmp_path / f"shards/{split}-masks-00000.npy", np.stack(masks))
    stats = {"mean": [0.5], "std": [0.2], "channels": 1, "height": SIDE, "width": SIDE}
    write_json(tmp_path / "shards/stats.json", stats)
    pd.DataFrame(rows).to_parquet(tmp_path / "shards/index.parquet")
    return tmp_path


def _perfect(image: np.ndarray) -> np.ndarray:
    return (image < 100).astype(np.uint8)


def _nothing(image: np.ndarray) -> np.ndarray:
    return np.zeros(image.shape[:2], dtype=np.uint8)


def _everything(image: np.ndarray) -> np.ndarray:
    return np.ones(image.shape[:2], dtype=np.uint8)


def _run(data: Path, out: str = "evaluation", **models: Any) -> dict[str, Any]:
    models = models or {"segmenter": _perfect, "scratch": _nothing}
    return evaluate_models(
        models, params=PARAMS, seed=0, ingest=data / "ingest", shards=data / "shards", out=data / out
    )


def _test_rows(data: Path) -> pd.DataFrame:
    index = pd.read_parquet(data / "shards/index.parquet")
    return index[(index["split"] == "test") & index["labelled"]]


def test_summary_of_models_whose_scores_are_known(data: Path) -> None:
    summary = _run(data, segmenter=_perfect, scratch=_nothing, other=_everything)
    assert summary["test"]["cases"] == 9
    assert summary["test"]["lesion_cases"] == 7
    assert summary["test"]["groups"] == 5
    perfect, nothing, everything = (summary["models"][name] for name in ("segmenter", "scratch", "other"))

    assert perfect["dsc"] == {"mean": 1.0, "low": 1.0, "high": 1.0, "cases": 9, "undefined": 0}
    assert perfect["hd95"]["mean"] == 0.0
    assert perfect["hd95"]["undefined"] == 2  # both masks of the normal cases are empty
    assert perfect["false_positive_rate"]["mean"] == 0.0

    # An empty prediction is right for the two normal cases and wrong for seven.
    assert nothing["dsc"]["mean"] == pytest.approx(2 / 9)
    assert nothing["dsc_lesion"]["mean"] == 0.0
    assert nothing["ppv"] == {"mean": None, "low": None, "high": None, "cases": 0, "undefined": 9}
    assert nothing["sensitivity"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "cases": 7, "undefined": 2}
    assert nothing["hd95"]["mean"] is None

    assert everything["sensitivity"]["mean"] == 1.0
    assert everything["false_positive_rate"]["mean"] == 1.0

    gain = summary["paired"]["segmenter-scratch"]["dsc"]
    assert gain["mean"] == pytest.approx(7 / 9)
    assert gain["low"] <= gain["mean"] <= gain["high"]
    assert set(summary["paired"]) == {"segmenter-scratch", "segmenter-other", "segmenter-threshold"}


def test_threshold_baseline_is_fitted_on_the_training_split(data: Path) -> None:
    baseline = _run(data)["models"]["threshold"]
    assert baseline["polarity"] == "dark"
    # Shards blur a lesion's edge, so that the best value lies between lesion (40-59) and background (140-159).
    assert 59 <= baseline["threshold"] < 140
    assert baseline["dsc"]["mean"] == 1.0


def test_writes_the_evaluation_folder(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def half(image: np.ndarray) -> np.ndarray:
        mask = _perfect(image)
        mask[: image.shape[0] // 4] = 0
        return mask

    summary = _run(data, segmenter=half, scratch=_nothing)
    out = data / "evaluation"
    written = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert written == {
        "cases.csv",
        "summary.json",
        "metrics.json",
        "dsc_histogram.csv",
        *(f"overlays/{kind}.png" for kind in ("best", "median", "worst")),
    }
    assert read_json(out / "summary.json") == summary

    cases = pd.read_csv(out / "cases.csv")
    columns = "model case_id group label lesion_fraction dsc ppv sensitivity hd95 predicted_fraction"
    assert list(cases) == columns.split()
    assert cases["model"].unique().tolist() == ["segmenter", "scratch", "threshold"]
    segmenter = cases[cases["model"] == "segmenter"]
    assert segmenter["case_id"].tolist() == [f"test_{row:02d}" for row in range(9)]
    assert segmenter["dsc"].mean() == pytest.approx(summary["models"]["segmenter"]["dsc"]["mean"])
    native = _test_rows(data)["lesion_fraction"].to_numpy()
    np.testing.assert_allclose(segmenter["lesion_fraction"], native)

    metrics = read_json(out / "metrics.json")
    assert metrics["segmenter_dsc"] == summary["models"]["segmenter"]["dsc"]["mean"]
    assert "scratch_ppv" not in metrics
    assert all(isinstance(value, int | float) for value in metrics.values())

    histogram = pd.read_csv(out / "dsc_histogram.csv")
    assert list(histogram) == ["dsc", "segmenter", "scratch", "threshold"]
    assert histogram.drop(columns="dsc").sum().tolist() == [7, 7, 7]
    assert histogram.loc[0, "scratch"] == 7

    printed = capsys.readouterr().out
    assert "scratch" in printed and summary["rule"] in printed and str(out) in printed
    dsc = next(line for line in printed.splitlines() if line.startswith("DSC, all images"))
    for name in ("segmenter", "scratch", "threshold"):
        entry = summary["models"][name]["dsc"]
        assert f"{entry['mean']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]" in dsc


def test_same_input_same_bytes(data: Path) -> None:
    for out in ("one", "two"):
        _run(data, out)
    files = [path.relative_to(data / "one") for path in (data / "one").rglob("*") if path.is_file()]
    assert len(files) == 7
    for file in files:
        assert (data / "one" / file).read_bytes() == (data / "two" / file).read_bytes(), file


def test_hash_identifies_the_test_split(data: Path) -> None:
    def digest(rows: pd.DataFrame | None = None) -> str:
        rows = _test_rows(data) if rows is None else rows
        return score_cases({"segmenter": _nothing}, test=rows, ingest=data / "ingest")[1]

    first = digest()
    assert len(first) == 64
    assert digest(_test_rows(data).iloc[::-1]) == first
    assert digest(_test_rows(data).iloc[1:]) != first
    assert digest(_test_rows(data).replace("test_00", "test_0")) != first

    path = data / "ingest/images/test_00.png"
    pixels = np.array(Image.open(path))
    Image.fromarray(pixels).save(path, compress_level=9)  # other bytes, the same picture
    assert digest() == first
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(path)
    changed = digest()
    assert changed != first
    mask = np.array(Image.open(data / "ingest/masks/test_00.png"))
    mask[0, 0] = 255
    Image.fromarray(mask).save(data / "ingest/masks/test_00.png")
    assert digest() not in (first, changed)


def test_a_failure_names_the_file_and_leaves_what_stood_there(data: Path) -> None:
    _run(data)
    before = (data / "evaluation/summary.json").read_bytes()
    Image.fromarray(np.zeros((3, 3), dtype=np.uint8)).save(data / "ingest/masks/test_04.png")
    with pytest.raises(UserError, match=r"test_04\.png"):
        _run(data, segmenter=_nothing)
    assert (data / "evaluation/summary.json").read_bytes() == before
    assert sorted(path.name for path in data.iterdir()) == ["evaluation", "ingest", "shards"]


def test_no_test_case_with_a_mask(data: Path) -> None:
    index = pd.read_parquet(data / "shards/index.parquet")
    index.loc[index["split"] == "test", "labelled"] = False
    index.to_parquet(data / "shards/index.parquet")
    with pytest.raises(UserError, match="no test case has a mask"):
        _run(data)


def test_training_cases_without_mask_do_not_shape_the_threshold(data: Path) -> None:
    threshold = _run(data)["models"]["threshold"]
    path = data / "shards/train-images-00000.npy"
    images = np.load(path)
    images[5:] = 255 - images[5:]
    np.save(path, images)
    assert _run(data)["models"]["threshold"]["train_dsc"] != threshold["train_dsc"]
    index = pd.read_parquet(data / "shards/index.parquet")
    index.loc[(index["split"] == "train") & (index["row"] >= 5), "labelled"] = False
    index.to_parquet(data / "shards/index.parquet")
    threshold = _run(data)["models"]["threshold"]
    assert (threshold["polarity"], threshold["dsc"]["mean"]) == ("dark", 1.0)


def _write_segmenter(folder: Path, seed: int) -> None:
    plan = EncoderPlan(channels=1, height=SIDE, width=SIDE, patch=8, dim=16, depth=2, heads=2)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Segmenter(plan, channels=8)
    save(
        folder / "segmenter.pt",
        {
            "kind": "amlp-segmenter",
            "plan": asdict(plan),
            "channels": 8,
            "input": {"mean": (0.5,), "std": (0.2,)},
            "flip_average": False,
            "state": model.state_dict(),
        },
    )


@pytest.mark.parametrize("with_scratch", [True, False])
def test_stage_scores_the_checkpoints(data: Path, with_scratch: bool) -> None:
    _write_segmenter(data / "segmenter", 0)
    _write_segmenter(data / "scratch", 1)
    summary = evaluate(
        params=PARAMS,
        seed=0,
        ingest=data / "ingest",
        shards=data / "shards",
        segmenter=data / "segmenter",
        scratch=data / "scratch" if with_scratch else None,
        out=data / "evaluation",
    )
    assert list(summary["models"]) == ["segmenter", *(["scratch"] if with_scratch else []), "threshold"]
    cases = pd.read_csv(data / "evaluation/cases.csv", index_col=["model", "case_id"])
    for name in ("segmenter", "scratch")[: 1 + with_scratch]:
        predictor = Predictor.load(data / name / "segmenter.pt")
        image = np.array(Image.open(data / "ingest/images/test_00.png"))
        assert cases.loc[(name, "test_00"), "predicted_fraction"] == predictor.mask(image).mean()


def test_missing_model(data: Path) -> None:
    with pytest.raises(UserError, match=r"segmenter\.pt"):
        evaluate(
            params=PARAMS,
            seed=0,
            ingest=data / "ingest",
            shards=data / "shards",
            segmenter=data / "segmenter",
            scratch=None,
            out=data / "evaluation",
        )
    assert not (data / "evaluation").exists()


def test_summary_is_strict_json(data: Path) -> None:
    _run(data, segmenter=_nothing)

    def refuse(name: str) -> float:
        raise AssertionError(name)

    json.loads((data / "evaluation/summary.json").read_text(), parse_constant=refuse)


def _unused(data: Path, fraction: float = 0.5, seed: int = 0, out: str = "unused") -> dict[str, Any]:
    return evaluate_models(
        {"segmenter": _perfect}, params=PARAMS, seed=seed, ingest=data / "ingest", shards=data / "shards",
        out=data / out, split="unused", label_fraction=fraction,
    )  # fmt: skip


def test_unused_images_are_those_that_fine_tuning_did_not_see(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Without the test split's images: they are not touched.
    for file in (data / "ingest").rglob("test_*.png"):
        file.unlink()
    train = pd.read_parquet(data / "shards/index.parquet").query("split == 'train'").reset_index(drop=True)
    used = set(train["case_id"][labelled_subset(train, 0.5, 0)])
    summary = _unused(data)
    cases = pd.read_csv(data / "unused/cases.csv")
    assert set(cases["case_id"]) == set(train["case_id"]) - used and used
    assert summary["test"]["split"] == "unused" and summary["test"]["cases"] == cases["case_id"].nunique()
    assert read_json(data / "unused/metrics.json")["unused_cases"] == summary["test"]["cases"]
    assert "training images whose masks fine-tuning did not see" in capsys.readouterr().out
    # Another choice of labels leaves others out, and the hash tells.
    assert _unused(data, seed=1)["test"]["hash"] != summary["test"]["hash"]
    with pytest.raises(UserError, match="leaves no labelled training image out"):
        _unused(data, fraction=1.0)


def test_the_hash_tells_the_split_of_the_same_images(data: Path) -> None:
    hashes = {
        score_cases({"segmenter": _nothing}, test=_test_rows(data), ingest=data / "ingest", split=split)[1]
        for split in ("test", "unused")
    }
    assert len(hashes) == 2 and _run(data)["test"]["hash"] in hashes


def test_the_baseline_of_unused_images_is_fitted_on_those_that_were_used(data: Path) -> None:
    path = data / "shards/train-images-00000.npy"
    images = np.load(path)
    train = pd.read_parquet(data / "shards/index.parquet").query("split == 'train'")
    before = _unused(data)["models"]["threshold"]
    images[unused_labels(train, 0.5, 0)] = 255 - images[unused_labels(train, 0.5, 0)]
    np.save(path, images)
    assert _unused(data)["models"]["threshold"] == before


def test_the_command_scores_unused_images_into_a_folder_of_their_own(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(data)
    (data / "params.yaml").write_text("finetune: {label_fraction: 0.5}\nevaluate: {bootstrap_samples: 100}\n")
    _write_segmenter(data / "model", 0)
    command = ["evaluate", "--ingest", "ingest", "--shards", "shards", "--segmenter", "model", "--no-scratch"]
    assert main([*command, "--split", "unused"]) == 2
    assert "fine-tune again" in capsys.readouterr().err
    train = pd.read_parquet("shards/index.parquet").query("split == 'train'")
    for seed in (1, 0):
        # Another seed's are as many, and others.
        seen = train.iloc[labelled_subset(train, 0.5, seed)]
        write_json(data / "model/labels.json", {"images": len(seen), "cases": cases_digest(seen)})
        if seed:
            assert main([*command, "--split", "unused"]) == 2
            assert f"trained on {len(seen)} images with a mask that are not the" in capsys.readouterr().err
    assert main([*command, "--split", "unused"]) == 0
    assert read_json(data / "evaluation-unused/summary.json")["test"]["split"] == "unused"
    assert not (data / "evaluation").exists()
    assert main(command) == 0
    assert read_json(data / "evaluation/summary.json")["test"]["split"] == "test"


def _one_corner(image: np.ndarray) -> np.ndarray:
    mask = np.zeros(image.shape[:2], dtype=np.uint8)
    mask[0, 0] = 1
    return mask


def test_columns_of_the_printed_table_stay_apart_where_distances_are_large(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in (*data.glob("ingest/images/*.png"), *data.glob("ingest/masks/*.png")):
        with Image.open(file) as image:
            larger = image.resize((16 * image.width, 16 * image.height), Image.Resampling.NEAREST)
        larger.save(file)
    summary = _run(data, segmenter=_perfect, scratch=_one_corner, other=_one_corner)
    assert summary["models"]["scratch"]["hd95"]["low"] > 100
    shown = capsys.readouterr().out.splitlines()
    head = next(line for line in shown if line.lstrip().startswith("segmenter"))
    table = shown[shown.index(head) : shown.index(head) + 8]
    cells = [re.split(r" {2,}", line.strip()) for line in table]
    assert cells[0] == ["segmenter", "scratch", "threshold", "other"]
    assert all(len(row) == 5 for row in cells[1:]), cells
    assert len({len(line) for line in table}) == 1
