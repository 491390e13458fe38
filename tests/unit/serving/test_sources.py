from __future__ import annotations

from pathlib import Path

import pytest

from amlp.errors import UserError
from amlp.serving.sources import list_sources


def folder_with(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def test_pictures_and_volumes_of_all_subfolders_are_found_in_order(tmp_path: Path) -> None:
    folder_with(tmp_path, "b/c/two.PNG", "a.tiff", "b/one.jpeg", "v.nii.gz", "w.nii", "notes.txt", ".hidden.png")
    folder_with(tmp_path, "x.dcm", "b/y.DCM", "IM0001")
    folder_with(tmp_path, ".cache/x.png", "b/.DS_Store")
    sources, others = list_sources(tmp_path)
    assert [source.name for source in sources] == ["a.tiff", "b/c/two.PNG", "b/one.jpeg", "v.nii.gz", "w.nii"]
    assert [source.mask for source in sources] == ["a.png", "b/c/two.png", "b/one.png", "v.nii.gz", "w.nii"]
    assert [source.volume for source in sources] == [False, False, False, True, True]
    assert all(source.path.is_file() for source in sources) and others == {".dcm": 2, ".txt": 1, "without suffix": 1}


def test_a_single_file_goes_by_its_name(tmp_path: Path) -> None:
    folder_with(tmp_path, "a.bmp", "b.png")
    [source], others = list_sources(tmp_path / "a.bmp")
    assert (source.path, source.name, source.mask, others) == (tmp_path / "a.bmp", "a.bmp", "a.png", {})


def test_namesakes_of_other_kinds_get_masks_of_their_own(tmp_path: Path) -> None:
    folder_with(tmp_path, "a.png", "a.jpg", "A.bmp", "b.jpg")
    masks = {source.name: source.mask for source in list_sources(tmp_path)[0]}
    assert masks == {"a.png": "a.png", "a.jpg": "a.jpg.png", "A.bmp": "A.bmp.png", "b.jpg": "b.png"}


def test_a_mask_does_not_take_a_folder_s_name(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    folder_with(tmp_path, "a.jpg", "a.png/b.png")
    assert [source.mask for source in list_sources(tmp_path)[0]] == ["a.jpg.png", "a.png/b.png"]


def test_masks_that_look_alike_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.jpg\.png: rename one"):
        list_sources(folder_with(tmp_path, "a.png", "a.jpg", "a.jpg.png"))


def test_excluded_files_are_left_out(tmp_path: Path) -> None:
    folder_with(tmp_path, "benign/x (1).png", "benign/x (1)_mask.png", "benign/x (1)_mask_1.png", "old/y.png")
    sources, others = list_sources(tmp_path, exclude=["*_mask*.png", "old/*"])
    assert [source.name for source in sources] == ["benign/x (1).png"] and others == {}


@pytest.mark.parametrize("names", [(), ("a.txt",), ("a_mask.png",)])
def test_nothing_to_segment_is_reported(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=f"no file to segment among {len(names)}"):
        list_sources(folder_with(tmp_path, *names), exclude=["*_mask.png"])


def test_a_place_that_does_not_exist_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such file or folder"):
        list_sources(tmp_path / "nowhere")


def test_a_link_to_a_folder_is_not_followed(tmp_path: Path) -> None:
    folder_with(tmp_path / "in", "a.png")
    (tmp_path / "in/loop").symlink_to(tmp_path / "in")
    assert [source.name for source in list_sources(tmp_path / "in")[0]] == ["a.png"]
