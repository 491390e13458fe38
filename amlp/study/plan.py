"""What a study compares, read from its file, and the units of work that it takes.

A unit is one run of a stage: `pretrain` (variant, seed), `finetune` and `score` (variant, label fraction, seed). It is
named by a hash of all parameters that determine its result, so variants that pre-train alike share one pre-training,
and a changed parameter makes another unit instead of overwriting this one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from amlp.errors import ListedError, UserError
from amlp.params import Count, Params, PositiveFloat, Section, load_params, parse_params, parse_section, read_mapping
from amlp.training.state import run_digest

Kind = Literal["pretrain", "finetune", "score"]
Scored = Literal["test", "unused"]
LabelFraction = Annotated[float, Field(gt=0.0, le=1.0)]
# What a variant can't set: data are prepared once for all variants, and the study itself sets the rest.
_SHARED = ("ingest", "validate", "preprocess", "scores", "seed", "register")
_STUDYS = ("finetune.label_fraction", "finetune.network")
Name = Annotated[str, Field(pattern=r"^[\w-]+$", max_length=60)]
# Parameters by dotted name, as in `pretrain.mps.enabled`.
Overrides = dict[str, Any]


class Variant(Section):
    """One way to train."""

    title: str
    pretrain: bool = True
    network: Literal["vit", "unet"] = "vit"
    params: Overrides = Field(default_factory=dict)
    # Factor on the epochs of fine-tuning, to give a variant as much computation as one that pre-trains.
    longer: PositiveFloat = 1.0
    # Label fractions that it is trained with; all of the study's unless given.
    fractions: Annotated[list[LabelFraction], Field(min_length=1)] | None = None
    seeds: Annotated[list[Count], Field(min_length=1)] = Field(default_factory=lambda: [0, 1, 2])


class Aim(Section):
    """What the study was made to show: at `fraction`, `better` exceeds `than` by at least `by`."""

    fraction: LabelFraction
    better: Name
    than: Name
    by: float = 0.0
    # The interval of the difference must lie above 0.
    excludes_zero: bool = False
    figure: Literal["dsc", "dsc_lesion"] = "dsc"


class StudyFile(Section):
    """A study as its file describes it."""

    RENAMED: ClassVar[Mapping[str, str]] = {"arms": "variants"}

    name: Name
    title: str
    # Parameters that all variants start from; seen from the study's file.
    recipe: str
    overrides: Overrides = Field(default_factory=dict)
    # The variant that all others are compared with.
    reference: Name
    variants: Annotated[dict[Name, Variant], Field(min_length=1)]
    # Label fraction -> overrides of the section `finetune`, for few labels take more epochs.
    fractions: Annotated[dict[LabelFraction, Overrides], Field(min_length=1)]
    aims: list[Aim] = Field(default_factory=list)
    # `unused` scores on the training images whose labels a cell's fine-tuning didn't see: settings can be explored
    # there, and the test split stays untouched for the study that measures the result.
    scored: Scored = "test"
    # The page shows images of the data set; False draws them into the study's folder, for they may not be published.
    public_images: bool = False


class Cell(NamedTuple):
    """One trained and scored model."""

    variant: str
    fraction: float
    seed: int


@dataclass(frozen=True)
class Unit:
    """One run of a stage.

    `variant`, `fraction` and `seed` are those of the first cell that asks for it; `needs` must be finished before.
    """

    kind: Kind
    variant: str
    fraction: float | None
    seed: int
    params: Params
    needs: Unit | None
    digest: str

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.digest}"

    @property
    def title(self) -> str:
        fraction = "" if self.fraction is None else f" {self.fraction:g}"
        return f"{self.kind} {self.variant}{fraction} seed {self.seed}"


@dataclass(frozen=True)
class Plan:
    """Units in the order in which they are worth running, the unit that scores each cell, and on what."""

    units: tuple[Unit, ...]
    cells: Mapping[Cell, Unit]
    scored: Scored = "test"


@dataclass(frozen=True)
class Study:
    """A study with the values that its variants start from."""

    file: StudyFile
    path: Path
    base: Mapping[str, Any]

    def params(self, variant: str, fraction: float, seed: int) -> Params:
        """Lay a variant's and a fraction's values over the base; later ones win, the fraction's last."""
        chosen = self.file.variants[variant]
        values = copy.deepcopy(dict(self.base))
        _lay_over(values, self.file.overrides)
        _lay_over(values, {"finetune.network": chosen.network} | chosen.params)
        _lay_over(values, {f"finetune.{key}": value for key, value in self.file.fractions[fraction].items()})
        _lay_over(values, {"finetune.label_fraction": fraction, "seed": seed})
        if chosen.longer != 1:
            _lay_over(values, {"finetune.epochs": round(values["finetune"]["epochs"] * chosen.longer)})
        return parse_params(values, f"{self.path}: variant {variant} at {fraction:g}")

    def title(self, variant: str) -> str:
        return self.file.variants[variant].title


def load_study(path: Path) -> Study:
    """Read a study's file and its recipe.

    Raises:
        UserError: a file is missing or is no YAML mapping.
        ListedError: some values are wrong; the error lists all of them.
    """
    if not path.is_file():
        raise UserError(f"{path}: not found; give a study's file, such as studies/busi-cpu.yaml.")
    file = parse_section(StudyFile, read_mapping(path), str(path))
    study = Study(file, path, load_params(path.parent / file.recipe).model_dump(by_alias=True))
    problems = [*_name_problems(file), *_fraction_problems(file)]
    for name in file.variants:
        problems += _variant_problems(study, name)
    if problems:
        raise ListedError(f"{path}: {len(problems)} problem(s)", problems, "Correct them and run again.")
    return study


def _name_problems(file: StudyFile) -> Iterator[str]:
    """Say where the reference and the aims name variants that the study does not have."""
    named = {"reference": file.reference}
    for number, aim in enumerate(file.aims):
        named |= {f"aims.{number}.better": aim.better, f"aims.{number}.than": aim.than}
        if aim.better == aim.than:
            yield f"aims.{number}: {aim.better} is compared with itself"
    for key, variant in named.items():
        if variant not in file.variants:
            yield f"{key}: no variant {variant!r}; variants: {', '.join(file.variants)}"


def _fraction_problems(file: StudyFile) -> Iterator[str]:
    """Say which label fractions the aims can't be judged at, or can't be scored."""
    for number, aim in enumerate(file.aims):
        if aim.fraction not in file.fractions:
            known = ", ".join(f"{fraction:g}" for fraction in file.fractions)
            yield f"aims.{number}.fraction: no fraction {aim.fraction:g}; fractions: {known}"
        for variant in {aim.better, aim.than} & file.variants.keys():
            trained = file.variants[variant].fractions
            if trained is not None and aim.fraction not in trained:
                yield f"aims.{number}: variant {variant} is not trained with fraction {aim.fraction:g}"
    if file.scored == "unused" and 1.0 in file.fractions:
        yield "fractions.1: scored: unused needs fractions below 1, because all labels leave no image unused"


def _variant_problems(study: Study, name: str) -> Iterator[str]:
    """Say what a variant sets that it can't, or that does not fit the rest of the study."""
    file, chosen = study.file, study.file.variants[name]
    key = f"variants.{name}"
    if chosen.pretrain and chosen.network != "vit":
        yield f"{key}: network {chosen.network} has nothing to pre-train; set pretrain: false"
    if unknown := set(chosen.fractions or ()) - file.fractions.keys():
        yield f"{key}.fractions: the study has no fraction {', '.join(map(str, sorted(unknown)))}"
    if len(set(chosen.seeds)) < len(chosen.seeds):
        yield f"{key}.seeds: a seed is given twice, got {chosen.seeds}"
    for parameter in chosen.params:
        if parameter.split(".")[0] in _SHARED:
            yield f"{key}.params.{parameter}: the same for all variants; set it in the recipe"
        elif parameter in _STUDYS:
            yield f"{key}.params.{parameter}: the study sets it, by `fractions` and `network`"
    for fraction in chosen.fractions or file.fractions:
        for setting in file.fractions.get(fraction, {}):
            if f"finetune.{setting}" in chosen.params:
                yield f"{key}.params.finetune.{setting}: fractions.{fraction:g} sets it for all variants"
    for fraction in file.fractions:
        try:
            study.params(name, fraction, chosen.seeds[0])
        except ListedError as error:
            yield from (f"variant {name} at {fraction:g}: {problem}" for problem in error.problems)


def _lay_over(values: dict[str, Any], overrides: Overrides) -> None:
    """Set values by dotted name; what is no parameter is reported when the whole is checked."""
    for name, value in overrides.items():
        *sections, leaf = name.split(".")
        section = values
        for key in sections:
            section = section.setdefault(key, {})
            if not isinstance(section, dict):
                raise ListedError(name, [f"{name}: {key} is no section"])
        section[leaf] = value


def make_plan(study: Study, only: Sequence[str] = ()) -> Plan:
    """List the units of a study: seed by seed, few labels before many, variants in the order of the file.

    Args:
        study: the study.
        only: filters such as "variant=full,scratch", "fraction=0.1" or "seed=0"; a cell must pass all of them.

    Raises:
        UserError: a filter names nothing of this study.
    """
    variants = study.file.variants
    wanted = [
        Cell(variant, fraction, seed)
        for seed in sorted({seed for chosen in variants.values() for seed in chosen.seeds})
        for fraction in sorted(study.file.fractions)
        for variant, chosen in variants.items()
        if seed in chosen.seeds and (chosen.fractions is None or fraction in chosen.fractions)
    ]
    for text in only:
        key, _, values = text.partition("=")
        if key not in Cell._fields:
            raise UserError(f"--only {text}: expected variant=..., fraction=... or seed=...")
        known = {_plain(str(getattr(cell, key))) for cell in wanted}
        asked = {_plain(value) for value in values.split(",")}
        if asked - known:
            missing, there = ", ".join(sorted(asked - known)), ", ".join(sorted(known))
            raise UserError(f"--only {text}: no {key} {missing}; there is {there}.")
        wanted = [cell for cell in wanted if _plain(str(getattr(cell, key))) in asked]

    units: dict[str, Unit] = {}
    cells = {}
    for cell in wanted:
        params = study.params(*cell)
        shared = (params.seed, params.encoder.model_dump())
        pretraining = None
        if variants[cell.variant].pretrain:
            digest = run_digest("pretrain", *shared, params.pretrain.model_dump())
            pretraining = Unit("pretrain", cell.variant, None, cell.seed, params, None, digest)
            pretraining = units.setdefault(pretraining.name, pretraining)
        start = pretraining.digest if pretraining else None
        digest = run_digest("finetune", *shared, _as_ever(params.finetune), start)
        finetuning = Unit("finetune", *cell, params, pretraining, digest)
        finetuning = units.setdefault(finetuning.name, finetuning)
        # Named as ever where it is the test split, so that what is finished stays so.
        where = () if study.file.scored == "test" else (study.file.scored,)
        digest = run_digest("score", finetuning.digest, params.evaluate.model_dump(), *where)
        scoring = Unit("score", *cell, params, finetuning, digest)
        cells[cell] = units.setdefault(scoring.name, scoring)
    return Plan(tuple(units.values()), cells, study.file.scored)


def _as_ever(section: Section) -> dict[str, Any]:
    """Return a section's values by the earliest names of its keys, so that finished units are still found."""
    earlier = {today: name for name, today in section.RENAMED.items()}
    return {earlier.get(name, name): value for name, value in section.model_dump().items()}


def _plain(value: str) -> str:
    """Write 1.0 as 1, so that either may be asked for; leave what is no number."""
    try:
        return f"{float(value):g}"
    except ValueError:
        return value.strip()
