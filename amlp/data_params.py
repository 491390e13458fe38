"""Parameters of the data: sections `ingest`, `validate` and `preprocess` of params.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from amlp.sections import Count, Fraction, OpenFraction, Positive, Section


class PhantomParams(Section):
    """The generator's data set."""

    patients: Annotated[int, Field(ge=4)] = 64
    images_per_patient: Positive = 4
    height: Annotated[int, Field(ge=32)] = 112
    width: Annotated[int, Field(ge=32)] = 144
    normal_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2


class PairsParams(Section):
    """Images and masks by patterns of their paths, see amlp/data/sources/patterns.py."""

    # Fields named patient, site, device and label mean that; a mask belongs to the image whose fields it shares.
    image: str = "images/{name}.*"
    mask: str = "masks/{name}.*"
    # Images that need no mask, beside the others.
    unlabelled: str = ""
    # What an image without a mask is: an error, or one more unlabelled image.
    missing_mask: Literal["error", "unlabelled"] = "error"


class TableParams(Section):
    """A table of the images, in CSV or Parquet; patients.csv at the top of the folder needs no setting."""

    # From ingest.path.
    file: str = ""
    # The column that names the image: its path, or its file's name, with or without suffix.
    key: str = "image"
    # Columns of the patient, whose images stay in one split, and of the class.
    patient: str = ""
    label: str = ""
    # Columns that go into the manifest as they are, so none that identifies people.
    keep: list[str] = Field(default=[])


class IngestParams(Section):
    """Where the images come from."""

    source: Literal["phantom", "pairs", "busi", "patient-folders"] = "phantom"
    # For `phantom` the images come from the generator's code, so that is what a change is looked for in.
    path: str = "amlp/data/phantom.py"
    # Share of source files that may be unreadable or incomplete; they are listed and left out.
    tolerance: Fraction = 0.0
    # `content` names cases by a digest of the image, because file names may identify people.
    case_ids: Literal["content", "name"] = "content"
    # Values of a mask that are lesion; empty: a mask has two values, and black is background.
    lesion_values: list[Count] = Field(default=[])
    # Refuse labels that look like names of patients.
    check_labels: bool = True
    pairs: PairsParams = PairsParams()
    table: TableParams = TableParams()
    phantom: PhantomParams = PhantomParams()

    @model_validator(mode="after")
    def _pairs_are_read(self) -> IngestParams:
        default = PairsParams(missing_mask=self.pairs.missing_mask)
        if self.source != "pairs" and self.pairs != default:
            raise ValueError(f"pairs is for source pairs, and source {self.source} does not read it; set source: pairs")
        return self


class ValidateParams(Section):
    """What a usable case looks like."""

    # Share of cases that may fail an expectation; they are listed and left out.
    tolerance: Fraction = 0.02
    min_side: Positive = 32
    max_aspect: Annotated[float, Field(ge=1.0)] = 4.0
    # Standard deviation of the grey values over their range: below, the picture is (nearly) blank.
    min_contrast: Fraction = 0.02
    max_lesion_fraction: Fraction = 0.9


class PreprocessParams(Section):
    """Groups, splits and shards."""

    RENAMED: ClassVar[Mapping[str, str]] = {"near_duplicate_distance": "near_duplicate_likeness"}

    height: Annotated[int, Field(ge=16)] = 96
    width: Annotated[int, Field(ge=16)] = 96
    # `grey`: one channel, a coloured mark on an ultrasound image turns grey; `auto`: colour if any image has colour.
    colour: Literal["grey", "auto"] = "grey"
    test_fraction: OpenFraction = 0.2
    val_fraction: OpenFraction = 0.125
    # Off: only equal files and patients form groups.
    near_duplicates: bool = True
    # What two pictures of one scene have at least, more where a data set's pictures are alike by nature; 1 is the same
    # picture, see docs/explanation/near-duplicates.md.
    near_duplicate_likeness: OpenFraction = 0.5
    # Pictures that each one is compared with, and as many mirrored ones.
    near_duplicate_neighbours: Positive = 5
    # A larger share of the cases in one group that is not one patient is an error.
    max_group_share: OpenFraction = 0.01
    shard_cases: Positive = 4096
