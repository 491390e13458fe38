from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from amlp.data.images import to_uint8
from amlp.errors import UserError
from amlp.serving import volumes
from amlp.serving.volumes import read_volume, volume_bytes

# Oblique, mirrored, and with slices thicker than pixels.
AFFINE = np.array([[-0.4, 0.02, 0.0, 31.0], [0.02, 0.39, 0.1, -12.5], [0.0, -0.05, 2.5, 7.0], [0, 0, 0, 1]])
RANDOM = np.random.default_rng(0)


def write(path: Path, values: Any, affine: Any = AFFINE) -> Path:
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz"])
def test_slices_run_along_the_last_axis_and_columns_along_the_first(tmp_path: Path, name: str) -> None:
    values = RANDOM.integers(0, 256, (7, 5, 3), dtype=np.uint8)
    slices = read_volume(write(tmp_path / name, values)).slices
    assert slices.shape == (3, 5, 7) and slices.dtype == np.uint8
    for number in range(3):
        np.testing.assert_array_equal(slices[number], values[:, :, number].T)


@pytest.mark.parametrize(
    "values",
    [
        RANDOM.integers(-1000, 3000, (6, 4, 1)).astype(np.int16),
        RANDOM.normal(3, 50, (6, 4, 1)).astype(np.float32),
        RANDOM.random((6, 4, 1)).astype(np.float32) * 0.5,
        np.full((6, 4, 1), 9, np.int16),
        RANDOM.integers(0, 256, (6, 4, 1), dtype=np.uint8),
    ],
)
def test_grey_values_become_those_of_a_picture(tmp_path: Path, values: Any) -> None:
    slices = read_volume(write(tmp_path / "v.nii", values)).slices
    np.testing.assert_array_equal(slices[0], to_uint8(values[:, :, 0].T))


def test_slices_keep_their_relation(tmp_path: Path) -> None:
    values = np.stack([np.full((4, 4), level, np.int16) for level in (0, 100, 1000)], axis=2)
    slices = read_volume(write(tmp_path / "v.nii", values)).slices
    assert [int(plane[0, 0]) for plane in slices] == [0, 26, 255]


def test_stored_scale_and_offset_are_applied(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.linspace(0, 1, 24).reshape(4, 3, 2), AFFINE)
    image.header.set_data_dtype(np.int16)
    nibabel.save(image, tmp_path / "v.nii")
    assert nibabel.load(tmp_path / "v.nii").dataobj.slope != 1
    assert read_volume(tmp_path / "v.nii").slices.ravel().tolist()[0] == 0
    assert read_volume(tmp_path / "v.nii").slices.max() == 255


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("shape", [(7, 5, 3), (7, 5), (7, 5, 3, 1)])
@pytest.mark.parametrize(("qform", "sform"), [(1, 0), (0, 2), (1, 4), (0, 0)])
def test_a_mask_lies_where_its_volume_does(
    tmp_path: Path, kind: Any, shape: tuple[int, ...], qform: int, sform: int
) -> None:
    image = kind(RANDOM.integers(0, 900, shape).astype(np.int16), None)
    straight = np.diag([0.5, 0.4, 2.0, 1.0])
    image.set_qform(straight, code=qform)
    image.set_sform(AFFINE, code=sform)
    image.header["descrip"] = b"Jane Doe"
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"Jane Doe"))
    nibabel.save(image, tmp_path / "v.nii.gz")
    volume = read_volume(tmp_path / "v.nii.gz")
    masks = RANDOM.integers(0, 2, volume.slices.shape, dtype=np.uint8)

    content = volume_bytes(masks, volume.header, compress=True)
    assert content == volume_bytes(masks, volume.header, compress=True)
    assert b"Jane Doe" not in gzip.decompress(content)
    (tmp_path / "mask.nii.gz").write_bytes(content)
    original, mask = nibabel.load(tmp_path / "v.nii.gz"), nibabel.load(tmp_path / "mask.nii.gz")
    assert type(mask) is kind and mask.shape == shape and mask.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(mask.affine, original.affine)
    np.testing.assert_array_equal(np.asanyarray(mask.dataobj).reshape(7, 5, -1).T, masks)
    for field in ("qform_code", "sform_code", "pixdim", "quatern_b", "qoffset_x", "srow_x", "srow_z", "xyzt_units"):
        np.testing.assert_array_equal(mask.header[field], original.header[field])


def test_a_volume_that_can_not_be_segmented_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = write(tmp_path / "whole.nii.gz", RANDOM.integers(0, 99, (9, 9, 9)).astype(np.int16)).read_bytes()
    (tmp_path / "half.nii.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.nii").write_text("no volume " * 99)
    write(tmp_path / "time.nii", np.zeros((4, 4, 3, 2), np.uint8))
    write(tmp_path / "nan.nii", np.array([[[1.0, np.nan]]], np.float32))
    write(tmp_path / "complex.nii", np.zeros((4, 4, 2), np.complex64))
    monkeypatch.setattr(volumes, "MAX_VOXELS", 700)
    for name, reason in {
        "half.nii.gz": "can't be read",
        "text.nii": "can't be read",
        "time.nii": r"shape \(4, 4, 3, 2\), expected a volume",
        "nan.nii": "not finite",
        "complex.nii": "voxels of type complex64",
        "whole.nii.gz": "over .* 700 voxels",
    }.items():
        with pytest.raises(UserError, match=reason) as caught:
            read_volume(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path / name))
