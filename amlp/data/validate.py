"""Stage `validate`: compute facts about each case's picture, judge them, and leave out cases that can't be used.

Great Expectations judges the table of facts; what it finds is listed case by case in `bad_cases.csv`. `warnings.csv`
lists in the same way what somebody should look at though the case stays. When more cases are bad than tolerated, the
folder `validate-failed` beside the stage's own one holds the same report; the stage's folder is left as it was (DVC has
removed it by then), and the next run that passes removes the report.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from scipy import ndimage

from amlp.data.expectations import check
from amlp.data.images import to_grey, to_model_input, to_uint8
from amlp.data.likeness import SIDE
from amlp.data.pictures import read_image, read_mask
from amlp.errors import ListedError, UserError
from amlp.files import atomic_dir, write_json
from amlp.layout import IngestFolder, ValidateFolder
from amlp.params import ValidateParams
from amlp.progress import progress

logger = logging.getLogger(__name__)

SHOWN_CASES = 20
REMEDY = "Repair or remove the images, change the limits under `validate`, or raise validate.tolerance."
# Cases handed out at a time: what waits in memory stays small, however many there are.
WINDOW = 256
TOUCHING = np.ones((3, 3), dtype=bool)

Facts = tuple[dict[str, Any], NDArray[np.uint8] | None]


@dataclass(frozen=True)
class Validated:
    """Counts: usable cases, bad ones that were left out, and cases to look at."""

    cases: int
    bad_cases: int
    warned_cases: int


def validate(*, params: ValidateParams, ingest: Path, out: Path) -> Validated:
    """Write to `out` the usable cases' `manifest.parquet` with facts, and the report.

    Facts: `problem` (null, or why the stored files can't be used), `mean` and `contrast` (standard deviation) of the
    grey values in 0..1 as the model sees them, `grey_levels`, `aspect` (longer over shorter side), `n_lesions` (null
    when unlabelled) and `contradicts` (null, or cases with the same picture under another label). `thumbnails.npy`
    holds (N, 64, 64) uint8 grey pictures in the manifest's order, by which near-duplicates are found. The report:
    `bad_cases.csv`, `warnings.csv`, `expectations.json`, `data_docs/`, `metrics.json`.

    Raises:
        UserError: there is no manifest, or no case is usable.
        ListedError: the share of bad cases is over `params.tolerance`; it names them and says where the report is.
    """
    path = IngestFolder(ingest).manifest
    if not path.is_file():
        raise UserError(f"{path}: not found; run `amlp ingest` first.")
    manifest = pd.read_parquet(path)
    if manifest.empty:
        raise UserError(f"{path}: holds no case; run `amlp ingest` on a source that has some.")
    failed = out.with_name(f"{out.name}-failed")
    kept = ValidateFolder(failed)
    with tempfile.TemporaryDirectory() as scratch:
        report = ValidateFolder(Path(scratch, "report"))
        report.path.mkdir()
        thumbnails = Path(scratch, "thumbnails.npy")
        manifest = with_facts(manifest, ingest, thumbnails)
        judgement = check(manifest, params=params, docs=report.docs)
        bad, odd = judgement.bad["case_id"].nunique(), judgement.odd["case_id"].nunique()
        judgement.bad.to_csv(report.bad_cases, index=False)
        judgement.odd.to_csv(report.warnings, index=False)
        write_json(report.expectations, judgement.result)
        is_usable = ~manifest["case_id"].isin(judgement.bad["case_id"])
        usable = manifest[is_usable]
        metrics = {
            "cases": len(usable),
            "bad_cases": bad,
            "bad_share": bad / len(manifest),
            "warned_cases": odd,
            "labelled_cases": int(usable["mask"].notna().sum()),
            "lesion_cases": int((usable["lesion_fraction"] > 0).sum()),
        }
        write_json(report.metrics, metrics)
        if bad / len(manifest) > params.tolerance or usable.empty:
            with atomic_dir(failed) as folder:
                shutil.copytree(report.path, folder, dirs_exist_ok=True)
            by_column = ", ".join(
                f"{column} {count}" for column, count in judgement.bad["column"].value_counts().items()
            )
            why = "none is left" if usable.empty else f"over validate.tolerance {params.tolerance:g}"
            raise ListedError(
                f"{path}: {bad} of {len(manifest)} cases ({bad / len(manifest):.1%}) are bad ({by_column}), {why}",
                _lines(judgement.bad),
                f"All are in {kept.bad_cases}; {kept.docs}/index.html shows them by expectation. {REMEDY}",
            )
        with atomic_dir(out) as folder:
            shutil.copytree(report.path, folder, dirs_exist_ok=True)
            usable.to_parquet(ValidateFolder(folder).manifest, index=False)
            _copy_rows(thumbnails, np.flatnonzero(is_usable), ValidateFolder(folder).thumbnails)
    shutil.rmtree(failed, ignore_errors=True)
    logger.info(f"validate: {len(usable)} usable cases, {bad} bad, {odd} to look at")
    for line in [*_lines(judgement.bad), *_lines(judgement.odd)]:
        logger.info(f"  - {line}")
    logger.info(f"wrote {out}: manifest.parquet, bad_cases.csv, warnings.csv, data_docs/index.html, expectations.json")
    return Validated(len(usable), bad, odd)


def _lines(found: pd.DataFrame) -> list[str]:
    """One line a case, the first ones only."""
    cases = found.groupby("case_id", sort=False)["reason"].agg("; ".join)
    lines = [f"{case_id}: {reasons}" for case_id, reasons in cases.iloc[:SHOWN_CASES].items()]
    return lines if len(cases) <= SHOWN_CASES else [*lines, f"... and {len(cases) - SHOWN_CASES} more"]


def _copy_rows(array: Path, rows: NDArray[np.int64], to: Path) -> None:
    source = np.load(array, mmap_mode="r")
    target = open_memmap(to, mode="w+", dtype=source.dtype, shape=(len(rows), *source.shape[1:]))
    for start in range(0, len(rows), WINDOW):
        target[start : start + WINDOW] = source[rows[start : start + WINDOW]]
    target.flush()


def with_facts(manifest: pd.DataFrame, ingest: Path, thumbnails: Path) -> pd.DataFrame:
    """Add the columns that `validate` describes, and write the thumbnails of all cases to a file of NumPy's."""
    pictures = open_memmap(thumbnails, mode="w+", dtype=np.uint8, shape=(len(manifest), SIDE, SIDE))
    rows = []
    for number, (row, thumbnail) in enumerate(_all_facts(manifest, ingest)):
        rows.append(row)
        if thumbnail is not None:
            pictures[number] = thumbnail
    pictures.flush()
    facts = pd.DataFrame(rows, index=manifest.index)
    sides = manifest[["height", "width"]]
    facts["aspect"] = sides.max(axis=1) / sides.min(axis=1)
    facts["n_lesions"] = facts["n_lesions"].astype("Int64")
    facts["problem"] = facts["problem"].astype("str")
    facts["contradicts"] = _contradictions(manifest)
    return pd.concat([manifest, facts], axis=1)


def _all_facts(manifest: pd.DataFrame, ingest: Path) -> Iterator[Facts]:
    rows = list(manifest.itertuples())
    # Threads, for decoding and numpy leave the interpreter's lock alone.
    with (
        progress(len(rows), "validate", "images") as bar,
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
    ):
        for start in range(0, len(rows), WINDOW):
            for facts in pool.map(partial(_facts, ingest=ingest), rows[start : start + WINDOW]):
                yield facts
                bar.update()


def _facts(case: Any, ingest: Path) -> Facts:
    """Facts of one case's files, and its thumbnail; only `problem` when they can't be used."""
    unknown = {"mean": np.nan, "contrast": np.nan, "grey_levels": np.nan, "n_lesions": None}
    try:
        image = read_image(ingest / case.image)
        mask = None if pd.isna(case.mask) else read_mask(ingest / case.mask)
    except UserError as error:
        # Relative to the ingest folder: the report must not say where somebody keeps the data.
        return {"problem": str(error).replace(f"{ingest}{os.sep}", ""), **unknown}, None
    size = (case.height, case.width)
    if image.shape[:2] != size or (mask is not None and mask.shape != size):
        found = f"image {image.shape[:2]}" + ("" if mask is None else f", mask {mask.shape}")
        return {"problem": f"{found}, expected both {size}", **unknown}, None
    grey = to_grey(to_uint8(image))
    raw = image if image.ndim == 2 and image.dtype.kind == "u" else grey
    facts = {
        "problem": None,
        "mean": float(grey.mean() / 255),
        "contrast": float(grey.std() / 255),
        "grey_levels": np.count_nonzero(np.bincount(raw.ravel())),
        "n_lesions": None if mask is None else ndimage.label(mask, structure=TOUCHING)[1],
    }
    return facts, to_model_input(grey, channels=1, height=SIDE, width=SIDE)[0]


def _contradictions(manifest: pd.DataFrame) -> pd.Series:
    """For each case, those with the same image file under another label, or null."""
    result = pd.Series(None, index=manifest.index, dtype="str")
    for _, same in manifest.groupby("sha256"):
        if same["label"].nunique() > 1:
            for row, label in same["label"].items():
                result[row] = ", ".join(sorted(same.loc[same["label"] != label, "case_id"]))
    return result
