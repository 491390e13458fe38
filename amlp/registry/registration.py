"""Where a run was recorded and what was registered: the content of registration.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from amlp.records import read_record
from amlp.registry.lineage import Lineage


@dataclass(frozen=True)
class RegisteredModel:
    """A version of a registered model.

    Attributes:
        model_sha256: of its weights' file.
        model_id: of MLflow's logged model.
        aliases: that it got at registration.
    """

    name: str
    version: str
    model_sha256: str
    model_id: str = ""
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class RegisteredLineage(Lineage):
    """With the version of the encoder that the segmenter was fine-tuned from."""

    encoder_version: str = ""


@dataclass(frozen=True)
class Registration:
    """One run.

    Attributes:
        tracking_uri: MLflow's address.
        parent_run_id: of the run in MLflow; `stage_runs` are those of the stages below it, by stage.
        source: on a cluster, where the images came from, and the commit of the code.
    """

    tracking_uri: str
    experiment: str
    parent_run_id: str
    encoder: RegisteredModel
    segmenter: RegisteredModel
    lineage: RegisteredLineage
    stage_runs: dict[str, str] = field(default_factory=dict)
    source: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path) -> Registration:
        """Read registration.json.

        Raises:
            UserError: there is none, or it is not what `register` writes.
        """
        return read_record(file, cls)

    def as_dict(self) -> dict[str, Any]:
        """Return what registration.json holds."""
        values = asdict(self)
        for kind in ("encoder", "segmenter"):
            values[kind]["aliases"] = list(values[kind]["aliases"])
        return values if self.source else {key: value for key, value in values.items() if key != "source"}
