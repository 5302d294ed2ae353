"""A patch applied to a model in memory."""

import copy

import pytest
import torch

from rlsparse_ray.errors import PatchError
from rlsparse_ray.patches import apply_to_model, make_patch, open_patch
from tests.patches.test_verify import Editor

BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32}


class Net(torch.nn.Module):
    """Several dtypes, a tied weight, a buffer, a 0-d parameter."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = torch.nn.Embedding(50, 8, dtype=torch.bfloat16)
        self.up = torch.nn.Linear(8, 8, bias=False, dtype=torch.float32)
        self.head = torch.nn.Linear(8, 50, bias=False, dtype=torch.bfloat16)
        self.head.weight = self.embed.weight
        codes = torch.randn(8, 8).to(torch.float8_e4m3fn)
        self.codes = torch.nn.Parameter(codes, requires_grad=False)
        self.scale = torch.nn.Parameter(torch.tensor(1.5))
        self.register_buffer("steps", torch.zeros(3, dtype=torch.int64))


def save(net, folder):
    from safetensors.torch import save_file

    folder.mkdir()
    tensors = {k: v.clone() for k, v in net.state_dict().items() if k != "head.weight"}
    save_file(tensors, folder / "model.safetensors")
    return folder


def same_bits(one, other):
    a, b = one.state_dict(), other.state_dict()
    assert a.keys() == b.keys()
    return [
        k
        for k in a
        if not torch.equal(a[k].view(-1).view(torch.uint8), b[k].view(-1).view(torch.uint8))
    ] == []


@pytest.fixture
def nets():
    base = Net()
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for place, tensor in enumerate(tuned.state_dict().values()):
            if tensor.dtype != torch.int64:
                flat = tensor.view(-1).view(BITS[tensor.element_size()])
                flat[place % flat.numel() :: 5] ^= 1
        tuned.steps[1] = 7
    return base, tuned


@pytest.fixture
def patch(nets, tmp_path):
    base, tuned = nets
    place = tmp_path / "patch.safetensors"
    report = make_patch(save(base, tmp_path / "base"), save(tuned, tmp_path / "tuned"), place)
    assert report.tensors_changed == 5
    return place


@pytest.mark.parametrize("verify", [True, False])
def test_in_place(nets, patch, verify):
    base, tuned = nets
    pointers = [p.data_ptr() for p in base.parameters()]
    changed = apply_to_model(base, patch, verify=verify)
    assert changed == sum(e.indices.numel for e in open_patch(patch).entries.values())
    assert same_bits(base, tuned)
    assert base.head.weight is base.embed.weight
    assert [p.data_ptr() for p in base.parameters()] == pointers


def test_an_opened_patch(nets, patch):
    base, tuned = nets
    apply_to_model(base, open_patch(patch))
    assert same_bits(base, tuned)


def test_wrapped(nets, patch):
    base, tuned = nets
    wrapper = torch.nn.Module()
    wrapper.module = base
    apply_to_model(wrapper, patch)
    assert same_bits(base, tuned)


def test_twice(nets, patch):
    base, tuned = nets
    apply_to_model(base, patch)
    with pytest.raises(PatchError, match="that of the tuned model, instead of"):
        apply_to_model(base, patch)
    assert same_bits(base, tuned)


def test_another_base(nets, patch):
    base = nets[0]
    with torch.no_grad():
        base.codes.view(torch.int8)[3, 3] ^= 2
    before = copy.deepcopy(base)
    with pytest.raises(PatchError, match=r"not a patch of this model: codes: XXH3 \w{16} instead"):
        apply_to_model(base, patch)
    assert same_bits(base, before)


def test_another_dtype(nets, patch):
    base = nets[0]
    base.embed.to(torch.float16)
    with pytest.raises(
        PatchError, match=r"BF16 \[50, 8\] in the patch, torch.float16 \[50, 8\] in"
    ):
        apply_to_model(base, patch)


def test_another_shape(nets, patch):
    nets[0].up = torch.nn.Linear(8, 9, bias=False)
    with pytest.raises(
        PatchError, match=r"up.weight: F32 \[8, 8\] in the patch, .* \[9, 8\] in the"
    ):
        apply_to_model(nets[0], patch)


def test_not_contiguous(nets, patch):
    nets[0].up.weight = torch.nn.Parameter(nets[0].up.weight.detach().t())
    with pytest.raises(PatchError, match=r"tensor up\.weight: not contiguous in the model"):
        apply_to_model(nets[0], patch)


def test_missing(nets, patch):
    del nets[0].up
    with pytest.raises(PatchError, match=r"tensor up\.weight: the model has none of that name"):
        apply_to_model(nets[0], patch)


def test_a_damaged_patch_sets_nothing(nets, patch):
    base = nets[0]
    before = copy.deepcopy(base)
    data = bytearray(patch.read_bytes())
    data[-1] ^= 1
    patch.write_bytes(data)
    with pytest.raises(PatchError, match=r"codes\.values: XXH3 is not"):
        apply_to_model(base, patch, verify=False)
    assert same_bits(base, before)


def test_values_of_another_model(nets, patch):
    """The patch is whole, but does not make what it says."""
    editor = Editor(patch)
    values = editor.array("up.weight.values", "<u4")
    values[0] ^= 8
    editor.put("up.weight.values", values)
    editor.save()
    with pytest.raises(PatchError, match=r"tensor up\.weight has XXH3 .* after it was patched"):
        apply_to_model(nets[0], patch)
