"""What a registered version carries for people: the lineage card and the model card.

`card.json` holds every fact, for programs and `amlp show`; `README.md` says the same in words, with the pictures. Both
are files of the version's run, below `cards/`, and hold no patient's name and no path of anybody's machine.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from amlp.evaluation.summary import Score, ScoredImages, Scores, Summary
from amlp.files import read_json, write_json
from amlp.layout import RunFolder
from amlp.metrics.figures import FIGURES, MODELS, in_order
from amlp.params import Params
from amlp.registry.lineage import Lineage
from amlp.registry.registration import RegisteredModel

# Folder of the run's files; `<kind>/card.json` below it.
CARDS = "cards"
USE = (
    "Research on lesion segmentation, on images like those it was trained on. It is not a medical device, was not "
    "tested for diagnosis, and no decision about a patient may rest on it."
)


@dataclass(frozen=True)
class CardData:
    """What a version was trained on.

    Attributes:
        md5: DVC's, of the ingest folder.
        uri: where the images came from on a cluster, with their MD5; empty elsewhere.
        splits: images and groups of each.
    """

    md5: str
    source: str
    uri: str = ""
    source_md5: str = ""
    images: int | None = None
    labelled: int | None = None
    labels: dict[str, int] = field(default_factory=dict)
    groups: int | None = None
    splits: dict[str, dict[str, Any]] = field(default_factory=dict)
    split_hash: str = ""


@dataclass(frozen=True)
class CardCode:
    """The code that made a version; see `Lineage`. Cards of earlier releases have no requirement."""

    git_commit: str
    git_dirty: bool | None
    amlp_version: str
    image: str = ""
    requirement: str = ""


@dataclass(frozen=True)
class CardTest(ScoredImages):
    """The images of the test split, and how sure the intervals are."""

    confidence: float = 0.95


@dataclass(frozen=True)
class Card:
    """What is known about a version: the content of card.json.

    Attributes:
        kind: `encoder` or `segmenter`.
        encoder: that a segmenter was fine-tuned from.
        training: the figures of the training's metrics.json.
        test: None for an encoder, as metrics and differences are empty.
    """

    kind: str
    name: str
    version: str
    model_sha256: str
    run_id: str
    data: CardData
    code: CardCode
    params_hash: str
    pipeline_run: str = ""
    training: dict[str, Any] = field(default_factory=dict)
    encoder: RegisteredModel | None = None
    test: CardTest | None = None
    metrics: dict[str, Scores] = field(default_factory=dict)
    differences: dict[str, Scores] = field(default_factory=dict)


def make_card(
    *,
    kind: str,
    model: RegisteredModel,
    encoder: RegisteredModel | None,
    params: Params,
    root: Path,
    summary: Summary,
    lineage: Lineage,
    tags: Mapping[str, str],
    run_id: str,
) -> Card:
    """Collect what is known about a version.

    Args:
        kind: `encoder` or `segmenter`.
        model: the version.
        encoder: that a segmenter was fine-tuned from.
        params: of the run.
        root: folder with the stages' outputs.
        summary: of the evaluation.
        lineage: of the run.
        tags: of the run besides: where the images came from.
        run_id: of MLflow.
    """
    run = RunFolder(root)
    data, shards = _read(run.ingest.summary), _read(run.shards.metrics)
    training = _read((run.encoder if kind == "encoder" else run.segmenter).metrics)
    scored = kind == "segmenter"
    return Card(
        kind=kind,
        name=model.name,
        version=model.version,
        model_sha256=model.model_sha256,
        run_id=run_id,
        data=CardData(
            md5=lineage.data_md5,
            source=data.get("source", params.ingest.source),
            uri=tags.get("source_uri", ""),
            source_md5=tags.get("source_md5", ""),
            images=data.get("cases"),
            labelled=data.get("labelled"),
            labels=data.get("labels", {}),
            groups=shards.get("groups"),
            splits={name: shards[name] for name in ("train", "val", "test") if "cases" in shards.get(name, {})},
            split_hash=shards.get("split_hash", ""),
        ),
        code=CardCode(
            git_commit=lineage.git_commit,
            git_dirty=lineage.git_dirty,
            amlp_version=lineage.amlp_version,
            image=lineage.image,
            requirement=lineage.requirement,
        ),
        params_hash=lineage.params_hash,
        pipeline_run=lineage.kubeflow_run,
        training={key: value for key, value in training.items() if not isinstance(value, Mapping)},
        encoder=encoder,
        test=CardTest(**asdict(summary.test), confidence=summary.confidence) if scored else None,
        metrics=summary.models if scored else {},
        differences=summary.paired if scored else {},
    )


def _read(file: Path) -> dict[str, Any]:
    return dict(read_json(file)) if file.is_file() else {}


def write_card(folder: Path, card: Card, *, root: Path, tracking_uri: str) -> None:
    """Write card.json, README.md and the pictures that there are.

    Args:
        folder: to write, empty.
        card: of `make_card`.
        root: folder with the stages' outputs.
        tracking_uri: of MLflow, for the commands.
    """
    pictures = {}
    for caption, file in _pictures(card.kind, RunFolder(root)).items():
        if file.is_file():
            shutil.copy(file, folder / file.name)
            pictures[caption] = file.name
    write_json(folder / "card.json", asdict(card))
    (folder / "README.md").write_text(describe(card, pictures, tracking_uri=tracking_uri), encoding="utf-8")


def _pictures(kind: str, run: RunFolder) -> dict[str, Path]:
    if kind == "encoder":
        return {
            "Hidden patches and what the model makes of them": run.encoder.pictures / "reconstructions.png",
            "Masks as the ratio rises": run.encoder.pictures / "masks.png",
        }
    return {
        "Test images with the best masks": run.evaluation.overlays / "best.png",
        "Typical test images": run.evaluation.overlays / "median.png",
        "Test images with the worst masks": run.evaluation.overlays / "worst.png",
    }


def describe(card: Card, pictures: Mapping[str, str], *, tracking_uri: str) -> str:
    """Return the model card as Markdown."""
    lines = [f"# {card.name} version {card.version}", ""]
    if (test := card.test) is None:
        lines += [
            "A vision transformer, pre-trained on images without labels by Adjustable Masking Lesion Patches (AMLP). "
            "Takes images of any size and returns features; fine-tuning starts from its weights.",
            "",
        ]
    else:
        lines += [
            "A lesion segmenter. Takes an image of any size, grey or colour, and returns a mask of that size.",
            "",
            "## Results",
            "",
            f"On the frozen test split, {test.cases} images in {test.groups} groups that no "
            f"training image belongs to, {test.lesion_cases} of them with a lesion. Intervals are "
            f"{100 * test.confidence:g} %, from a bootstrap over groups.",
            "",
            *_table(card.metrics),
            "",
            *(f"- {_difference(name, scores)}" for name, scores in card.differences.items() if "dsc" in scores),
            "",
            "DSC counts every image: one without a lesion scores 1 if the prediction is empty, else 0.",
            "",
        ]
    lines += ["## Intended use and limits", "", USE, ""]
    lines += [f"- {text}" for text in _limits(card)]
    lines += ["", "## Where it comes from", "", *chain(card, tracking_uri=tracking_uri), ""]
    lines += ["## Made again by", "", "```sh", *reproduce(card, tracking_uri=tracking_uri), "```", ""]
    for caption, file in pictures.items():
        lines += [f"## {caption}", "", f"![{caption}]({file})", ""]
    return "\n".join(lines)


def _table(metrics: Mapping[str, Scores]) -> list[str]:
    names = in_order(metrics)
    rows = [f"| | {' | '.join(MODELS.get(name, name) for name in names)} |", f"|---|{'---|' * len(names)}"]
    for figure, label in FIGURES.items():
        if any(figure in metrics[name] for name in names):
            cells = (_value(metrics[name].get(figure), digits=label.digits) for name in names)
            rows.append(f"| {label.text} | {' | '.join(cells)} |")
    return rows


def _value(score: Score | None, *, digits: int = 3) -> str:
    if score is None or score.mean is None:
        return "–"
    ends = "" if score.low is None else f" ({score.low:.{digits}f} to {score.high:.{digits}f})"
    return f"{score.mean:.{digits}f}{ends}"


def _difference(name: str, scores: Scores) -> str:
    one, _, other = name.partition("-")
    return f"DSC of {one} less {other}: {_value(scores['dsc'])}"


def _limits(card: Card) -> Sequence[str]:
    data = card.data
    limits = [
        f"It has seen {data.images} images of one source ({data.source}). Other scanners, hospitals and patients "
        "were not tested.",
        "One training run: another seed gives another model, and the intervals do not hold that.",
    ]
    if data.source == "phantom":
        limits.insert(0, "The images were drawn by a program. It knows nothing about real ones.")
    if card.kind == "segmenter":
        limits.append("Probabilities and uncertainty are not calibrated.")
    if card.code.git_dirty is not False:
        limits.append(
            "The code differed from its commit, or that is not known: the version can't be made again exactly."
        )
    return limits


def chain(card: Card, *, tracking_uri: str) -> list[str]:
    """Say what the version was made of, from its weights back to the bytes: one line for each step."""
    data, code = card.data, card.code
    dirty = {True: ", with changes that were not committed", False: "", None: ", changes unknown"}[code.git_dirty]
    splits = ", ".join(f"{name} {part['cases']} in {part['groups']}" for name, part in data.splits.items())
    lines = [f"- weights: SHA-256 {card.model_sha256}"]
    if encoder := card.encoder:
        lines.append(
            f"- fine-tuned from {encoder.name} version {encoder.version}, SHA-256 {encoder.model_sha256}, "
            "pre-trained on the training split without its masks"
        )
    if labelled := card.training.get("labelled_images"):
        lines.append(f"- trained on {labelled} masks")
    lines += [
        f"- images: {data.images} of source {data.source}, {data.labelled} with a mask, in {data.groups} "
        f"groups{f' ({splits})' if splits else ''}",
        f"- data: DVC MD5 {data.md5}" + (f", from {data.uri} ({data.source_md5})" if data.uri else ""),
        f"- code: commit {code.git_commit}{dirty}, amlp {code.amlp_version}"
        + (f", image {code.image}" if code.image else ""),
        f"- parameters: SHA-256 {card.params_hash}, `params.json` of the run",
        f"- MLflow run {card.run_id} at {tracking_uri}"
        + (f", pipeline run {card.pipeline_run}" if card.pipeline_run else ""),
    ]
    return lines


def reproduce(card: Card, *, tracking_uri: str) -> list[str]:
    """Return the commands that make the version again, and what must come out."""
    drawn = card.data.source == "phantom"
    data = "" if drawn else " --data FOLDER"
    run, code = RunFolder(Path()), card.code
    weights = run.encoder.weights if card.kind == "encoder" else run.segmenter.weights
    clone = f"git checkout {code.git_commit} && make setup && . .venv/bin/activate"
    return [
        *([] if drawn else [f"# FOLDER holds the images whose ingest has DVC's MD5 {card.data.md5}"]),
        f"pip install {code.requirement}" if code.requirement else clone,
        f"MLFLOW_TRACKING_URI={tracking_uri} mlflow artifacts download --run-id {card.run_id} "
        "--artifact-path params.json --dst-path .",
        f"amlp init workspaces/again --recipe params.json{data} && cd workspaces/again && dvc repro",
        f"sha256sum {weights}  # {card.model_sha256} on the same kind of processor",
    ]
