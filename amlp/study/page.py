"""A study's page in Markdown: every number comes out of the units' files, every verdict out of a rule."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from pathlib import Path

from amlp.data.shards import ShardedSplit
from amlp.files import write_text
from amlp.metrics.bootstrap import Interval
from amlp.metrics.figures import FIGURES
from amlp.metrics.segmentation import RULE
from amlp.study.markdown import NONE, escape, number, table
from amlp.study.pictures import draw_examples, draw_fractions, draw_scores
from amlp.study.plan import Aim
from amlp.study.results import ENOUGH_SEEDS, Estimate, Results
from amlp.study.sections import cost, diagnostics, limits

logger = logging.getLogger(__name__)


def write_page(results: Results, page: Path, *, shards: Path, ingest: Path) -> None:
    """Write the page, and its pictures to `images/` beside it.

    Images of the data set go into the study's own folder unless its file says that they are public.
    """
    name = results.study.file.name
    images = page.parent / "images"
    other = _compared_with(results)
    pictures = {}
    draw_scores(images / f"{name}-dsc.png", results)
    pictures["dsc"] = f"{name}-dsc.png"
    if draw_fractions(images / f"{name}-fractions.png", results):
        pictures["fractions"] = f"{name}-fractions.png"
    examples = (images if results.study.file.public_images else results.store.root) / f"{name}-examples.png"
    drawn = bool(other) and draw_examples(examples, results, other=str(other), ingest=ingest, shards=shards)
    if drawn and results.study.file.public_images:
        pictures["examples"] = examples.name

    parts = [_head(results, shards), _verdicts(results)]
    parts += ["## Scores", _how_to_read(results), _picture(pictures, "dsc", "DSC of each variant with its interval")]
    for fraction in sorted({cell.fraction for cell in results.cells}):
        parts += [_scores(results, fraction), _differences(results, fraction)]
    if "fractions" in pictures:
        parts += ["## Label efficiency", _picture(pictures, "fractions", "DSC against the share of the labels")]
    if "examples" in pictures and other:
        titles = [escape(results.study.title(variant)) for variant in (other, results.study.file.reference)]
        kind = "Test" if results.scored.split == "test" else "Unused training"
        alt = f"{kind} images with the true outline and those of {' and '.join(titles)}"
        parts += [f"## {kind} images", _picture(pictures, "examples", alt)]
    elif drawn:
        logger.info(f"Wrote {examples}: images of the data set, which the page does not show (public_images).")
    parts += [cost(results), diagnostics(results), limits(results)]
    write_text(page, "\n\n".join(part for part in parts if part) + "\n")


def _compared_with(results: Results) -> str | None:
    """The variant that the first aim compares the reference with, or else the first other variant."""
    reference = results.study.file.reference
    aims = [aim.than for aim in results.study.file.aims if aim.better == reference]
    others = [variant for variant in results.study.file.variants if variant != reference]
    return next(iter([*aims, *others]), None)


def _head(results: Results, shards: Path) -> str:
    file, records = results.study.file, list(results.records.values())
    splits = {split: ShardedSplit.open(shards, split).index for split in ("train", "val", "test")}
    counts = ", ".join(
        f"{split} {len(index)} images ({int(index['labelled'].sum())} with a mask) in {index['group'].nunique()} groups"
        for split, index in splits.items()
    )
    finished, total = len(results.cells), len(results.plan.cells)
    lines = [
        f"# {escape(file.title)}",
        "",
        f"Written by `amlp study {results.study.path.name}`; no number or verdict on this page is written by hand.",
        "",
        f"- finished: {finished} of {total} models" + ("" if finished == total else "; **the study is not complete**"),
        f"- data: {counts}",
        f"- {_scored(results)}",
        f"- code: {_distinct(record['commit'][:12] + _dirty(record['commit']) for record in records)}; "
        f"torch {_distinct(record['torch'] for record in records)}",
        f"- machine: {_distinct(str(record['cores']) for record in records)} CPU cores, "
        f"GPU {_distinct(record['gpu'] or 'none' for record in records)}; "
        f"{_distinct(str(record['threads']) for record in records)} threads a unit",
    ]
    if results.stale:
        names = ", ".join(unit.title for unit in results.stale)
        lines.append(f"- **made by other code, data or models than are here now**, and kept: {escape(names)}")
    return "\n".join(lines)


def _scored(results: Results) -> str:
    """Name the images that cells were scored on."""
    found = results.scored
    if found.split == "test":
        return (
            f"scored on the test split: {found.cases} images, {found.lesion_cases} with a lesion, {found.groups} "
            f"groups, hash `{found.hash[:16]}`"
        )
    each = f"{found.fewest}" if found.fewest == found.most else f"{found.fewest} to {found.most}"
    return (
        "**scored on training images whose masks a model's fine-tuning did not see**, never on the test split: "
        f"{each} images a model, of {found.cases} in {found.groups} groups ({found.lesion_cases} with a lesion), hash "
        f"`{found.hash[:16]}`"
    )


def _dirty(commit: str) -> str:
    return " with uncommitted changes" if commit.endswith("-dirty") else ""


def _distinct(values: Iterable[str]) -> str:
    return ", ".join(escape(value) for value in sorted(set(values)))


def _verdicts(results: Results) -> str:
    if not results.study.file.aims:
        return ""
    rows = []
    for verdict in results.verdicts():
        aim, estimate = verdict.aim, verdict.estimate
        found = (
            NONE
            if estimate is None
            else _with_interval(estimate, sign=True) + f", {_seeds(len(estimate.by_seed))}{_mark(estimate)}"
        )
        rows.append([_aim(results, aim), _asked(aim), found, f"**{verdict.state}**"])
    return "## Verdict\n\n" + table(["aim", "asked", "found", "verdict"], rows)


def _aim(results: Results, aim: Aim) -> str:
    better, than = (escape(results.study.title(variant)) for variant in (aim.better, aim.than))
    return f"{better} over {than}, {aim.fraction:.0%} of the labels, {FIGURES[aim.figure].text}"


def _asked(aim: Aim) -> str:
    return f"at least {number(aim.by, sign=True)}" + (", interval above 0" if aim.excludes_zero else "")


def _how_to_read(results: Results) -> str:
    settings = results.settings
    images = "test images"
    if results.scored.split == "unused":
        images = "the training images that each left unused (others for each seed and share of labels)"
    return (
        f"Means over seeds and {images} with {settings.confidence:.0%} intervals from {settings.bootstrap_samples} "
        f"resamples. From {ENOUGH_SEEDS} seeds on, groups and seeds are drawn with replacement together; intervals "
        "marked † come from fewer and resample groups alone, so **they lack the randomness of training**. "
        f"{RULE}"
    )


def _scores(results: Results, fraction: float) -> str:
    variants = results.variants(fraction)
    units = [unit for variant in variants for unit in results.units("finetune", variant, fraction)]
    labelled = sorted({int(results.metrics([unit], "labelled_images")) for unit in units})
    images = " to ".join(map(str, dict.fromkeys([*labelled[:1], *labelled[-1:]])))
    images += ", others for each seed:" if fraction < 1 else ""
    rows = []
    for variant in variants:
        figures = {figure: results.estimate(variant, fraction, figure) for figure in FIGURES}
        dsc, hd95 = figures["dsc"], figures["hd95"].headline
        rows.append(
            [
                escape(results.study.title(variant)),
                str(len(dsc.by_seed)),
                _with_interval(dsc) + _mark(dsc),
                _spread(dsc),
                _with_interval(figures["dsc_lesion"]) + _mark(dsc),
                number(figures["ppv"].headline.mean),
                number(figures["sensitivity"].headline.mean),
                f"{number(hd95.mean, digits=1)} ({hd95.cases} images)",
                number(figures["false_positive_rate"].headline.mean),
            ]
        )
    names = {figure: label.text for figure, label in FIGURES.items()}
    head = ["variant", "seeds", names["dsc"], "by seed", names["dsc_lesion"], names["ppv"], names["sensitivity"]]
    head += [f"{names['hd95']} (defined for)", names["false_positive_rate"]]
    title = f"### {fraction:.0%} of the labels: {images} labelled training images, with a lesion or without"
    return f"{title}\n\n" + table(head, rows)


def _differences(results: Results, fraction: float) -> str:
    reference = results.study.file.reference
    rows = []
    for variant in results.variants(fraction):
        if variant == reference:
            continue
        dsc, lesion = (results.difference(reference, variant, fraction, figure) for figure in ("dsc", "dsc_lesion"))
        if dsc is None or lesion is None:
            continue
        rows.append(
            [
                escape(results.study.title(variant)),
                str(len(dsc.by_seed)),
                _with_interval(dsc, sign=True) + _mark(dsc),
                _range(dsc.groups_only, sign=True),
                _spread(dsc, sign=True),
                _with_interval(lesion, sign=True) + _mark(lesion),
            ]
        )
    if not rows:
        return ""
    dsc_name, lesion_name = FIGURES["dsc"].text, FIGURES["dsc_lesion"].text
    head = ["less", "seeds in pairs", dsc_name, "groups alone", "by seed", lesion_name]
    title = escape(results.study.title(reference))
    return f"{title} less each other variant, in pairs of the same image and seed:\n\n" + table(head, rows)


def _picture(pictures: dict[str, str], name: str, alt: str) -> str:
    return f"![{alt}](images/{pictures[name]})"


def _with_interval(estimate: Estimate, *, sign: bool = False) -> str:
    return f"{number(estimate.headline.mean, sign=sign)} ({_range(estimate.headline, sign=sign)})"


def _range(interval: Interval, *, sign: bool = False) -> str:
    if math.isnan(interval.low):
        return "too few groups"
    return f"{number(interval.low, sign=sign)} to {number(interval.high, sign=sign)}"


def _spread(estimate: Estimate, *, sign: bool = False) -> str:
    values = [value for value in estimate.by_seed.values() if not math.isnan(value)]
    if len(values) < 2:
        return NONE
    return f"{number(min(values), sign=sign)} to {number(max(values), sign=sign)}"


def _mark(estimate: Estimate) -> str:
    return "" if estimate.seeds_resampled else " †"


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"
