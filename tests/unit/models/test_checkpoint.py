import pytest
import torch

from amlp.errors import UserError
from amlp.models.checkpoint import InputStats, load, load_encoder, save, save_encoder, transfer_encoder
from amlp.models.encoder import Encoder, EncoderPlan

STATS = InputStats(mean=(0.3,), std=(0.2,))


def plan(**changes):
    return EncoderPlan(
        **({"channels": 1, "height": 32, "width": 32, "patch": 8, "dim": 24, "depth": 2, "heads": 3} | changes)
    )


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "encoder.pt"
    save_encoder(path, Encoder(plan()), STATS)
    return path


def test_an_encoder_comes_back_as_it_was(checkpoint):
    encoder, stats = load_encoder(checkpoint)
    assert stats == STATS
    again = checkpoint.with_name("again.pt")
    save_encoder(again, encoder, stats)
    assert again.read_bytes() == checkpoint.read_bytes()


def test_transfer_reports_a_full_match(checkpoint):
    target = Encoder(plan())
    report, stats = transfer_encoder(checkpoint, target, min_matched=1.0)
    assert (report.missing, report.unexpected, report.adapted) == ([], [], [])
    assert stats == STATS
    source, _ = load_encoder(checkpoint)
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


def test_transfer_to_another_size_and_to_colour_keeps_a_grey_pictures_tokens(checkpoint):
    target = Encoder(plan(channels=3, height=48))
    report, stats = transfer_encoder(checkpoint, target, min_matched=1.0)
    assert sorted(report.adapted) == ["vit.patch_embed.proj.weight", "vit.pos_embed"]
    assert stats.mean == (0.3, 0.3, 0.3)
    source, _ = load_encoder(checkpoint)
    grey = torch.randn(1, 1, 32, 32)
    expected = source.vit.patch_embed(grey)
    assert torch.allclose(target.vit.patch_embed.proj(grey.expand(-1, 3, -1, -1)).flatten(2).mT, expected, atol=1e-5)


def test_a_foreign_architecture_is_refused_with_what_did_not_fit(checkpoint):
    with pytest.raises(UserError, match=r"only .*% of the encoder's tensors fit.*missing") as error:
        transfer_encoder(checkpoint, Encoder(plan(dim=48)), min_matched=0.9)
    assert "encoder.pt" in str(error.value)


def test_a_deeper_target_reports_its_missing_blocks(checkpoint):
    report, _ = transfer_encoder(checkpoint, Encoder(plan(depth=3)), min_matched=0.5)
    assert report.missing
    assert all(name.startswith("vit.blocks.2.") for name in report.missing)


def test_wrong_files_are_named(tmp_path, checkpoint):
    with pytest.raises(UserError, match="not found"):
        load(tmp_path / "none.pt", "amlp-encoder")
    with pytest.raises(UserError, match="expected a checkpoint of kind 'amlp-segmenter', found 'amlp-encoder'"):
        load(checkpoint, "amlp-segmenter")
    broken = tmp_path / "broken.pt"
    broken.write_bytes(checkpoint.read_bytes()[:200])
    with pytest.raises(UserError, match=r"broken\.pt: not readable"):
        load(broken, "amlp-encoder")


def test_pickled_code_is_never_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "pwned"), "w"))

    path = tmp_path / "evil.pt"
    torch.save({"kind": "amlp-encoder", "state": Evil()}, path)
    with pytest.raises(UserError, match="not readable"):
        load(path, "amlp-encoder")
    assert not (tmp_path / "pwned").exists()


def test_a_failed_write_leaves_the_old_file(checkpoint):
    before = checkpoint.read_bytes()
    with pytest.raises((TypeError, AttributeError, RuntimeError), match=r"lambda|pickle"):
        save(checkpoint, {"kind": "x", "state": lambda: None})
    assert checkpoint.read_bytes() == before
    assert list(checkpoint.parent.iterdir()) == [checkpoint]
