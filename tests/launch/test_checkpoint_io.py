"""A checkpoint is whole or not there; a damaged one is named."""

import errno

import pytest
import torch

from launch import checkpoint_io
from launch.checkpoint_io import AtomicCheckpointIO

CHECKPOINT = {"state_dict": {"weight": torch.arange(100_000.0)}, "global_step": 3}


def names(directory):
    return sorted(entry.name for entry in directory.iterdir())


def test_round_trip(tmp_path):
    io = AtomicCheckpointIO()
    io.save_checkpoint(CHECKPOINT, tmp_path / "checkpoints" / "last.ckpt")
    loaded = io.load_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert loaded["global_step"] == 3 and torch.equal(loaded["state_dict"]["weight"], torch.arange(100_000.0))
    assert names(tmp_path / "checkpoints") == ["last.ckpt"]
    assert io.seconds > 0
    io.remove_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert names(tmp_path / "checkpoints") == []


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("unexpected pos 64")]
)
def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch, error):
    io, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint(CHECKPOINT, path)
    before = path.read_bytes()

    def half_written(checkpoint, file):
        file.write(b"half")
        raise error

    monkeypatch.setattr(checkpoint_io.torch, "save", half_written)
    with pytest.raises(
        OSError, match=r"last\.ckpt: checkpoint not written, [\d,]+ bytes free .*before is kept"
    ):
        io.save_checkpoint(CHECKPOINT, path)
    assert names(tmp_path) == ["last.ckpt"] and path.read_bytes() == before


def test_a_file_size_limit_is_a_full_disk(tmp_path):
    resource = pytest.importorskip("resource", reason="the limit is a Unix one")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, limits[1]))
    try:
        with pytest.raises(OSError, match="checkpoint not written"):
            AtomicCheckpointIO().save_checkpoint(CHECKPOINT, tmp_path / "last.ckpt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == []


def test_what_cannot_be_pickled_leaves_no_file(tmp_path):
    with pytest.raises(Exception, match="lambda|pickle"):
        AtomicCheckpointIO().save_checkpoint({"f": lambda: 0}, tmp_path / "last.ckpt")
    assert names(tmp_path) == []


def test_a_damaged_checkpoint_names_the_others(tmp_path):
    io = AtomicCheckpointIO()
    for name in ("best.ckpt", "last.ckpt"):
        io.save_checkpoint(CHECKPOINT, tmp_path / name)
    content = (tmp_path / "last.ckpt").read_bytes()
    for damage in (content[: len(content) // 2], b"", b"not a checkpoint"):
        (tmp_path / "last.ckpt").write_bytes(damage)
        with pytest.raises(
            ValueError, match=r"last\.ckpt: this checkpoint is damaged.* ckpt_path=.*best\.ckpt$"
        ):
            io.load_checkpoint(tmp_path / "last.ckpt")
    (tmp_path / "best.ckpt").unlink()
    with pytest.raises(ValueError, match="holds no other"):
        io.load_checkpoint(tmp_path / "last.ckpt")


def test_a_strangers_objects_are_not_read(tmp_path):
    torch.save({"x": pytest.approx(1)}, tmp_path / "best.ckpt")
    with pytest.raises(ValueError, match="could run code"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "best.ckpt")


def test_a_missing_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")
