"""A study's page in Markdown: every number comes out of the units' files, every verdict out of a rule."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from amlp.data.shards import ShardedSplit
from amlp.evaluation.evaluate import FIGURES
from amlp.files import write_text
from amlp.metrics.bootstrap import Interval
from amlp.metrics.segmentation import RULE
from amlp.study.pictures import draw_examples, draw_fractions, draw_scores
from amlp.study.plan import Aim
from amlp.study.results import ENOUGH_SEEDS, Estimate, Results

_NONE = "–"


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
    parts += ["## Scores", _how_to_read(results), _picture(pictures, "dsc", "DSC of each arm with its interval")]
    for fraction in sorted({cell.fraction for cell in results.cells}):
        parts += [_scores(results, fraction), _differences(results, fraction)]
    if "fractions" in pictures:
        parts += ["## Label efficiency", _picture(pictures, "fractions", "DSC against the share of the labels")]
    if "examples" in pictures and other:
        titles = [escape(results.study.title(arm)) for arm in (other, results.study.file.reference)]
        kind = "Test" if results.scored.split == "test" else "Unused training"
        alt = f"{kind} images with the true outline and those of {' and '.join(titles)}"
        parts += [f"## {kind} images", _picture(pictures, "examples", alt)]
    elif drawn:
        print(f"Wrote {examples}: images of the data set, which the page does not show (public_images).")
    parts += [_cost(results), _diagnostics(results), _limits(results)]
    write_text(page, "\n\n".join(part for part in parts if part) + "\n")


def _compared_with(results: Results) -> str | None:
    """The arm that the first aim compares the reference with, or else the first other arm."""
    reference = results.study.file.reference
    aims = [aim.than for aim in results.study.file.aims if aim.better == reference]
    others = [arm for arm in results.study.file.arms if arm != reference]
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
            _NONE
            if estimate is None
            else _with_interval(estimate, sign=True) + f", {_seeds(len(estimate.by_seed))}{_mark(estimate)}"
        )
        rows.append([_aim(results, aim), _asked(aim), found, f"**{verdict.state}**"])
    return "## Verdict\n\n" + table(["aim", "asked", "found", "verdict"], rows)


def _aim(results: Results, aim: Aim) -> str:
    better, than = (escape(results.study.title(arm)) for arm in (aim.better, aim.than))
    return f"{better} over {than}, {aim.fraction:.0%} of the labels, {FIGURES[aim.figure]}"


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
    arms = results.arms(fraction)
    units = [unit for arm in arms for unit in results.units("finetune", arm, fraction)]
    labelled = sorted({int(results.metrics([unit], "labelled_images")) for unit in units})
    images = " to ".join(map(str, dict.fromkeys([*labelled[:1], *labelled[-1:]])))
    images += ", others for each seed:" if fraction < 1 else ""
    rows = []
    for arm in arms:
        figures = {figure: results.estimate(arm, fraction, figure) for figure in FIGURES}
        dsc, hd95 = figures["dsc"], figures["hd95"].headline
        rows.append(
            [
                escape(results.study.title(arm)),
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
    head = ["arm", "seeds", "DSC, all images", "by seed", "DSC, images with a lesion", "PPV", "sensitivity"]
    head += ["HD95, pixels (defined for)", "false-positive rate"]
    title = f"### {fraction:.0%} of the labels: {images} labelled training images, with a lesion or without"
    return f"{title}\n\n" + table(head, rows)


def _differences(results: Results, fraction: float) -> str:
    reference = results.study.file.reference
    rows = []
    for arm in results.arms(fraction):
        if arm == reference:
            continue
        dsc, lesion = (results.difference(reference, arm, fraction, figure) for figure in ("dsc", "dsc_lesion"))
        if dsc is None or lesion is None:
            continue
        rows.append(
            [
                escape(results.study.title(arm)),
                str(len(dsc.by_seed)),
                _with_interval(dsc, sign=True) + _mark(dsc),
                _range(dsc.groups_only, sign=True),
                _spread(dsc, sign=True),
                _with_interval(lesion, sign=True) + _mark(lesion),
            ]
        )
    if not rows:
        return ""
    head = ["less", "seeds in pairs", "DSC, all images", "groups alone", "by seed", "DSC, images with a lesion"]
    title = escape(results.study.title(reference))
    return f"{title} less each other arm, in pairs of the same image and seed:\n\n" + table(head, rows)


def _cost(results: Results) -> str:
    fractions = sorted({cell.fraction for cell in results.cells})
    rows = []
    for arm in dict.fromkeys(cell.arm for cell in results.cells):
        pretrained = results.units("pretrain", arm)
        row = [escape(results.study.title(arm))]
        row += [number(results.metrics(pretrained, "steps"), digits=0)]
        row += [number(results.metrics(pretrained, "visible_tokens") / 1e6, digits=2)]
        row += [number(results.metrics(pretrained, "seconds") / 60, digits=1)]
        row += [number(results.cpu_seconds(pretrained) / 60, digits=1)]
        for fraction in fractions:
            units = results.units("finetune", arm, fraction)
            row.append(number(results.metrics(units, "seconds") / 60, digits=1))
            row.append(number(results.cpu_seconds(units) / 60, digits=1))
        rows.append(row)
    head = ["arm", "pre-training steps", "visible tokens, millions", "minutes", "CPU minutes"]
    for fraction in fractions:
        head += [f"fine-tuning at {fraction:.0%}, minutes", "CPU minutes"]
    return (
        "## Cost\n\nMeans over seeds. Minutes depend on what ran beside a training, CPU minutes hardly do.\n\n"
        + table(head, rows)
    )


def _diagnostics(results: Results) -> str:
    """What pre-training masked and reconstructed, and how well features separated, where that was recorded."""
    wanted = [
        ("masked_ratio", "times likelier that lesion is masked", ("first", "lowest", "last")),
        ("score_enrichment", "enrichment of the scores", ("first", "last")),
        ("score_recall", "recall of the scores", ("first", "last")),
        ("error_lesion", "error on lesion", ("last",)),
        ("error_background", "error on background", ("last",)),
        ("probe_auc", "AUC of a linear probe of the encoder", ("first", "last")),
    ]
    rows = []
    for arm in dict.fromkeys(cell.arm for cell in results.cells):
        title = escape(results.study.title(arm))
        curves, drawn = results.curves(arm, "diagnostics.csv"), results.curves(arm, "history.csv")
        if curves:
            sources = {name: drawn if name == "masked_ratio" else curves for name, _, _ in wanted}
            cells = [number(_at(sources[name], name, when)) for name, _, times in wanted for when in times]
            untrained = results.metrics(results.units("pretrain", arm), "probe_auc_untrained")
            rows.append([title, *cells, number(untrained)])
    if not rows:
        return ""
    head = ["arm"] + [f"{title}, {when}" for _, title, times in wanted for when in times]
    head.append("the probe before training")
    text = (
        "Means over seeds, and the lowest of any epoch of any seed. What is masked is counted in every epoch, in the "
        "masks that the training draws; scores and errors are of up to 32 training images, the probe's of up to 96. "
        "True masks are looked at here alone, no training depends on them."
    )
    return "\n\n".join(["## What pre-training did", text, table(head, rows)])


def _at(curves: Sequence[pd.DataFrame], column: str, when: str) -> float:
    """A figure at a moment of each seed's training: the mean over seeds, or the lowest of all."""
    found = []
    for table in curves:
        if column == "masked_ratio" and "masked_lesion_share" in table:
            table = table.assign(masked_ratio=table["masked_lesion_share"] / table["masked_background_share"])
        values = table[column].dropna() if column in table else pd.Series(dtype=float)
        if len(values):
            found.append({"first": values.iloc[0], "last": values.iloc[-1], "lowest": values.min()}[when])
    if not found:
        return math.nan
    return float(min(found) if when == "lowest" else np.mean(found))


def _limits(results: Results) -> str:
    few = [
        escape(results.study.title(arm))
        for arm in results.study.file.arms
        if 0 < max(len(results.seeds(arm, fraction)) for fraction in results.study.file.fractions) < ENOUGH_SEEDS
    ]
    limits = [
        "One data set and one split into training, validation and test: another hospital, device or split gives other "
        "figures.",
        "The scale is that of the machine above: longer training and larger models may order the arms differently.",
        "Groups are near-duplicates, and patients only where the data name them; images of one patient in several "
        "groups would make every interval too narrow.",
        f"Even with {ENOUGH_SEEDS} seeds the randomness of training is known roughly: resampling so few trainings "
        "gives intervals that are somewhat too narrow.",
        *_limits_of_the_split(results),
        "The epoch is chosen on the whole validation split, whatever share of the training labels is used: a project "
        "with so few labels would have fewer to choose by.",
    ]
    if few:
        limits.append(
            f"Fewer than {ENOUGH_SEEDS} seeds ({', '.join(few)}): such an arm may be better or worse than it looks by "
            "the luck of its training alone."
        )
    return "## What these numbers do not show\n\n" + "\n".join(f"- {limit}" for limit in limits)


def _limits_of_the_split(results: Results) -> list[str]:
    chance = "and many comparisons are on this page: some intervals exclude 0 by chance."
    if results.scored.split == "test":
        return [
            f"All arms are compared on the same test split, {chance} Settings that were chosen after a look at such a "
            "page favour what they were chosen for."
        ]
    return [
        "These are figures to choose settings by, not to tell how good a model is: what was chosen here is to be "
        "scored on the test split, which this study did not touch.",
        "Pre-training saw the scored images, without their masks, and training from scratch did not: arms with "
        "pre-training may look better here than on new images. Grey values were normalised by these images too.",
        "Each seed and share of labels leaves other images unused, so figures of different shares are not of the same "
        "images; differences between arms are, within each seed.",
        f"Arms are compared on the same images, {chance}",
    ]


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
        return _NONE
    return f"{number(min(values), sign=sign)} to {number(max(values), sign=sign)}"


def _mark(estimate: Estimate) -> str:
    return "" if estimate.seeds_resampled else " †"


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def number(value: float, *, digits: int = 3, sign: bool = False) -> str:
    """A number as the page shows it, with a true minus sign; a dash for NaN."""
    if math.isnan(value):
        return _NONE
    text = f"{value:+,.{digits}f}" if sign else f"{value:,.{digits}f}"
    return text.replace("-", "−")


def escape(text: str) -> str:
    """Make text mean itself in Markdown, in a table's cell too."""
    text = " ".join(text.split())
    text = re.sub(r"([\\`*_\[\]|~$])", r"\\\1", text)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the cells are escaped already."""
    lines = [head, ["---"] * len(head), *rows]
    assert all(len(line) == len(head) for line in lines), "a row is shorter or longer than the head"
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
