import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from crossvit.errors import UserError
from crossvit.models.text_encoder import TextEncoder
from crossvit.models.visual_transformer import VisualTransformer, resize_positions
from crossvit.models.weights import read_state_dict, transfer


def network() -> nn.Module:
    return nn.ModuleDict({"body": nn.Linear(3, 4), "head": nn.Linear(4, 2)})


def test_everything_by_name():
    source, target = network(), network()
    report = transfer(target, source.state_dict())
    assert set(report.loaded) == set(source.state_dict()) and not report.resized + report.missing + report.unexpected
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))
    assert report.summary() == "4 tensors loaded, 0 resized, 0 missing, 0 unexpected"


def test_position_tables_are_resized():
    source, target = VisualTransformer(8, 1, 2, (4, 4)), VisualTransformer(8, 1, 2, (7, 5))
    report = transfer(target, source.state_dict())
    assert report.resized == ("position",) and not report.missing
    assert torch.equal(target.position, resize_positions(source.position, (7, 5)))
    short, long = TextEncoder(9, 6, 8, 1, 2), TextEncoder(9, 11, 8, 1, 2)
    report = transfer(long, short.state_dict())
    assert report.resized == ("position",)
    assert torch.allclose(long.position[::2], short.position, atol=1e-6)  # the ends stay, the rest lies between
    assert torch.allclose(long.position[1], (short.position[0] + short.position[1]) / 2, atol=1e-6)


def test_missing_names_are_an_error_unless_allowed():
    source = {name: value for name, value in network().state_dict().items() if name.startswith("body")}
    target = network()
    with pytest.raises(UserError, match="2 missing: head.weight, head.bias"):
        transfer(target, source)
    for pattern in ("head", "head.", "head.*"):
        report = transfer(target, source, allow_missing=[pattern])
        assert report.missing == ("head.weight", "head.bias")
        assert "2 missing (head.weight, head.bias)" in report.summary()


def test_unexpected_names_are_an_error_unless_allowed():
    source = network().state_dict() | {"teacher.weight": torch.ones(1)}
    with pytest.raises(UserError, match="1 unexpected: teacher.weight"):
        transfer(network(), source)
    assert transfer(network(), source, allow_unexpected=["teacher"]).unexpected == ("teacher.weight",)


def test_refused_weights_leave_the_module_as_it_was():
    target = network()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(UserError):
        transfer(target, network().state_dict() | {"teacher.weight": torch.ones(1)})
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


def test_another_shape_is_an_error_unless_the_name_may_be_missing():
    source = network().state_dict() | {"head.weight": torch.ones(5, 4), "head.bias": torch.ones(5)}
    with pytest.raises(UserError, match=r"2 missing: head.weight has shape \(5, 4\), expected \(2, 4\)"):
        transfer(network(), source)
    target = network()
    before = target["head"].weight.clone()
    report = transfer(target, source, allow_missing=["head"])
    assert report.missing == report.unexpected == ("head.weight", "head.bias")
    assert torch.equal(target["head"].weight, before)


def test_prefix_picks_a_part():
    source = {f"model.{name}": value for name, value in network().state_dict().items()} | {
        "ema.body.weight": torch.ones(1)
    }
    assert len(transfer(network(), source, prefix="model.").loaded) == 4
    with pytest.raises(UserError, match="4 missing"):
        transfer(network(), source, prefix="network.")


def test_step_counters_of_batch_norm_may_differ():
    norm = nn.BatchNorm2d(3)
    plain = {name: value for name, value in norm.state_dict().items() if name != "num_batches_tracked"}
    assert transfer(nn.BatchNorm2d(3), plain).missing == ("num_batches_tracked",)


def test_long_lists_are_cut():
    source = {f"extra.{i}": torch.ones(1) for i in range(9)} | network().state_dict()
    with pytest.raises(UserError, match=r"9 unexpected: extra.0, .*extra.4 and 4 more"):
        transfer(network(), source)


def test_files_of_every_kind_are_read(tmp_path):
    weights = network().state_dict()
    torch.save(weights, tmp_path / "plain.pth")
    torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "lightning.ckpt")
    torch.save({"model": weights, "epoch": 3}, tmp_path / "wrapped.pt")
    save_file(weights, tmp_path / "weights.safetensors")
    for path in tmp_path.iterdir():
        read = read_state_dict(path)
        assert all(torch.equal(read[name], value) for name, value in weights.items()), path.name


def test_files_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(UserError, match="nowhere.pth: no such weights file"):
        read_state_dict(tmp_path / "nowhere.pth")
    torch.save(network().state_dict(), tmp_path / "whole.pth")
    save_file(network().state_dict(), tmp_path / "whole.safetensors")
    for name in ("whole.pth", "whole.safetensors"):
        content = (tmp_path / name).read_bytes()
        for cut in (0, 10, len(content) // 2):
            damaged = tmp_path / name.replace("whole", f"cut{cut}")
            damaged.write_bytes(content[:cut])
            with pytest.raises(UserError, match=rf"cut{cut}.*: damaged"):
                read_state_dict(damaged)
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"epoch": 1}, tmp_path / "numbers.pth")
    for name in ("list.pth", "numbers.pth"):
        with pytest.raises(UserError, match="holds no tensors by name"):
            read_state_dict(tmp_path / name)


class Payload:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


@pytest.mark.parametrize("protocol", ["torch", "pickle"])
def test_code_in_a_file_does_not_run(tmp_path, protocol):
    victim, path = tmp_path / "written", tmp_path / "weights.pth"
    if protocol == "torch":
        torch.save({"weight": torch.ones(1), "payload": Payload(victim)}, path)
    else:
        path.write_bytes(pickle.dumps({"weight": Payload(victim)}, protocol=2))
    with pytest.raises(UserError, match="damaged, or not a file of plain tensors"):
        read_state_dict(path)
    assert not victim.exists()
