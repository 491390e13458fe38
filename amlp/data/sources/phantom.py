"""Source `phantom`: pictures drawn from a seed, see amlp/data/phantom.py; a job is a patient."""

from __future__ import annotations

import hashlib
from functools import partial

from amlp.data.phantom import render_patient
from amlp.data.sources.base import Case, Job, Listing, Loaded, Request
from amlp.params import PhantomParams


def list_phantom(request: Request) -> Listing:
    """List the generator's patients."""
    phantom = request.params.phantom
    jobs = [
        Job(phantom.images_per_patient, partial(_load_patient, phantom, request.seed, patient))
        for patient in range(phantom.patients)
    ]
    return Listing(files=phantom.patients * phantom.images_per_patient, jobs=jobs)


def _load_patient(params: PhantomParams, seed: int, patient: int) -> Loaded:
    cases = []
    for case in render_patient(params=params, seed=seed, patient=patient):
        digest = hashlib.sha256(case.image.tobytes()).hexdigest()
        cases.append(Case(case.case_id, case.label, case.patient, case.image, case.mask, digest, "phantom"))
    return Loaded(cases, [])
