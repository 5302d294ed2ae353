"""The optimizers of a subnetwork: torch's own update on its entries, and on no other bit."""

import copy
import io

import pytest
import torch
from torch import nn

from rlsparse_ray.errors import TrainingError
from rlsparse_ray.training import Subnetwork, SubnetworkAdamW, SubnetworkSGD, optimizer
from tests.training.nets import (
    assert_frozen,
    gradients,
    mask_in,
    masks_of,
    same_bits,
    small_net,
    subnetwork_of,
    train,
    twins,
)

ADAMW = (SubnetworkAdamW, torch.optim.AdamW)
SGD = (SubnetworkSGD, torch.optim.SGD)
SETTINGS = [
    (*ADAMW, {"lr": 1e-2, "weight_decay": 0.1}),
    (*ADAMW, {"lr": 1e-2, "weight_decay": 0.1, "betas": (0.5, 0.7), "eps": 1e-3}),
    (*ADAMW, {"lr": 1e-2, "maximize": True}),
    (*SGD, {"lr": 0.1}),
    (*SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.2, "weight_decay": 0.1}),
    (*SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True}),
]
LEAKY = [SETTINGS[0], SETTINGS[4]]
"""With weight decay and momentum: what moves weights that have no gradient."""

IDS = [f"{cls.__name__}-{n}" for n, (cls, _, _) in enumerate(SETTINGS)]


def kept(dense, start, masks):
    """Put back what a dense optimizer moved outside the masks."""
    with torch.no_grad():
        for (name, now), before in zip(dense.named_parameters(), start.parameters(), strict=True):
            now.copy_(torch.where(mask_in(masks, name, now), now, before))


@pytest.mark.parametrize(("cls", "torch_cls", "settings"), LEAKY, ids=["adamw", "sgd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("master", [False, True])
def test_frozen_weights_keep_their_bits_over_200_steps(cls, torch_cls, settings, dtype, master):
    net, start, masks = twins(dtype)
    sub = Subnetwork.from_masks(masks)
    # an eps that fp16 can hold
    eps = {"eps": 1e-4} if cls is SubnetworkAdamW else {}
    ours = cls(net.named_parameters(), sub, master_weights=master, **settings, **eps)
    train(net, ours, range(200))
    assert_frozen(net, start, masks)


def test_the_same_check_sees_a_dense_optimizer_leak():
    net, start, masks = twins()

    def mask_gradients():
        for name, p in net.named_parameters():
            p.grad *= mask_in(masks, name, p)

    train(net, torch.optim.AdamW(net.parameters(), weight_decay=0.1), range(2), mask_gradients)
    with pytest.raises(AssertionError):
        assert_frozen(net, start, masks)


@pytest.mark.parametrize(("cls", "torch_cls", "settings"), SETTINGS, ids=IDS)
def test_entries_have_the_bits_of_the_dense_optimizer(cls, torch_cls, settings, monkeypatch):
    monkeypatch.setattr(optimizer, "_CPU_CHUNK", 100)
    net, dense, masks = twins()
    start = copy.deepcopy(net)
    ours = cls(net.named_parameters(), Subnetwork.from_masks(masks), **settings)
    theirs = torch_cls(dense.parameters(), foreach=False, **settings)
    for step in range(30):
        train(net, ours, range(step, step + 1))
        train(dense, theirs, range(step, step + 1))
        kept(dense, start, masks)
        assert same_bits(net, dense)


@pytest.mark.parametrize(("cls", "torch_cls", "settings"), LEAKY, ids=["adamw", "sgd"])
def test_masters_are_the_weights_of_a_dense_fp32_optimizer(cls, torch_cls, settings):
    net, start, masks = twins(torch.bfloat16)
    sub = Subnetwork.from_masks(masks)
    ours = cls(net.named_parameters(), sub, master_weights=True, **settings)
    dense = copy.deepcopy(net).float()
    theirs = torch_cls(dense.parameters(), foreach=False, **settings)
    for step in range(30):
        train(net, ours, range(step, step + 1))
        for p, q in zip(net.parameters(), dense.parameters(), strict=True):
            q.grad = p.grad.float()
        theirs.step()
        for (name, p), q in zip(net.named_parameters(), dense.parameters(), strict=True):
            inside = mask_in(masks, name, p)
            assert torch.equal(p[inside], q[inside].bfloat16())
            if inside.any():
                assert torch.equal(ours.state[p]["master"], q[inside])
    assert_frozen(net, start, masks)


@pytest.mark.parametrize(("cls", "torch_cls", "settings"), LEAKY, ids=["adamw", "sgd"])
def test_bf16_without_masters_is_torchs_bf16(cls, torch_cls, settings):
    """Where torch's vector loops end it rounds in another way: at most a vector a tensor."""
    net, dense, masks = twins(torch.bfloat16)
    ours = cls(net.named_parameters(), Subnetwork.from_masks(masks), **settings)
    theirs = torch_cls(dense.parameters(), foreach=False, **settings)
    train(net, ours, range(1))
    train(dense, theirs, range(1))
    for (name, p), q in zip(net.named_parameters(), dense.parameters(), strict=True):
        inside = mask_in(masks, name, p)
        assert (p[inside] != q[inside]).sum() <= 32
        assert torch.allclose(p[inside], q[inside], rtol=1e-2)
        assert ours.state[p].get("master") is None


def test_masters_move_where_bf16_stands_still():
    """Updates of a hundredth of a bf16 step: lost one by one, kept by the masters."""
    moved = {}
    for master in (False, True):
        net, start, masks = twins(torch.bfloat16)
        sub = Subnetwork.from_masks({"0.weight": masks["0.weight"]})
        ours = SubnetworkAdamW(
            net.named_parameters(), sub, lr=1e-6, weight_decay=0.0, master_weights=master
        )
        train(net, ours, range(200))
        moved[master] = int((net[0].weight != start[0].weight).sum())
    assert moved[True] > 5 * moved[False]


def test_fused_is_equal_up_to_rounding():
    net, dense, masks = twins()
    settings = {"lr": 1e-2, "weight_decay": 0.1, "fused": True}
    ours = SubnetworkAdamW(net.named_parameters(), Subnetwork.from_masks(masks), **settings)
    theirs = torch.optim.AdamW(dense.parameters(), **settings)
    start = copy.deepcopy(net)
    for step in range(10):
        train(net, ours, range(step, step + 1))
        train(dense, theirs, range(step, step + 1))
        kept(dense, start, masks)
    for p, q in zip(net.parameters(), dense.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-5, atol=1e-7)
    assert_frozen(net, start, masks)


def test_state_is_eight_bytes_an_entry():
    net, _, masks = twins()
    sub = Subnetwork.from_masks(masks)
    ours = SubnetworkAdamW(net.named_parameters(), sub)
    assert ours.state_bytes().total == 0
    train(net, ours, range(1))
    found = ours.state_bytes()
    assert (found.state, found.masters, found.indices) == (8 * sub.size, 0, 4 * sub.size)
    assert found.total == 12 * sub.size
    tensors = [t for state in ours.state.values() for t in state.values() if t.dim()]
    assert sum(t.untyped_storage().nbytes() for t in tensors) == found.state
    net = small_net(torch.bfloat16)
    for master, state, masters in ((True, 8, 4), (False, 4, 0)):
        ours = SubnetworkAdamW(net.named_parameters(), sub, master_weights=master)
        train(net, ours, range(1))
        found = ours.state_bytes()
        assert (found.state, found.masters) == (state * sub.size, masters * sub.size)


def groups_of(net):
    named = list(net.named_parameters())
    return [
        {"params": [x for x in named if x[1].dim() > 1], "weight_decay": 0.3},
        {"params": [x for x in named if x[1].dim() == 1], "weight_decay": 0.0, "lr": 0.05},
        {"params": [x for x in named if x[1].dim() > 2]},
    ]


def unnamed(groups):
    return [{**g, "params": [p for _, p in g["params"]]} for g in groups]


@pytest.mark.parametrize(("cls", "torch_cls", "settings"), LEAKY, ids=["adamw", "sgd"])
def test_groups_schedule_clipping_and_accumulation(cls, torch_cls, settings):
    """All that a loop does between backward and step, beside the dense optimizer doing it."""
    net, dense, masks = twins()
    start = copy.deepcopy(net)
    ours = cls(groups_of(net), Subnetwork.from_masks(masks), **settings)
    theirs = torch_cls(unnamed(groups_of(dense)), foreach=False, **settings)
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, 20) for o in (ours, theirs)]
    for step in range(20):
        for model, each in ((net, ours), (dense, theirs)):
            each.zero_grad()
            gradients(model, step)
            gradients(model, step + 100)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            each.step()
        for schedule in schedules:
            schedule.step()
        kept(dense, start, masks)
        assert same_bits(net, dense), step
    assert ours.param_groups[1]["lr"] < 0.01
    assert_frozen(net, start, masks)


def test_closure_and_parameters_without_gradients():
    net, start, masks = twins()
    ours = SubnetworkAdamW(net.named_parameters(), Subnetwork.from_masks(masks), lr=1e-2)
    net[3].weight.requires_grad_(False)
    seen = []

    def closure():
        ours.zero_grad()
        loss = net(torch.ones(2, 33)).square().mean()
        loss.backward()
        seen.append(loss)
        return loss

    assert ours.step(closure) is seen[0]
    masks["3.weight"][:] = False
    assert_frozen(net, start, masks)
    ours.zero_grad()
    assert all(p.grad is None for p in net.parameters())
    once = copy.deepcopy(net)
    ours.step()
    assert same_bits(net, once)


@pytest.mark.parametrize(("cls", "torch_cls", "settings"), LEAKY, ids=["adamw", "sgd"])
@pytest.mark.parametrize("master", [False, True])
def test_resume_gives_the_bits_of_an_unbroken_run(cls, torch_cls, settings, master):
    net, other, _ = twins(torch.bfloat16)
    sub = subnetwork_of(net)
    ours = cls(net.named_parameters(), sub, master_weights=master, **settings)
    train(net, ours, range(5))
    file = io.BytesIO()
    torch.save({"model": net.state_dict(), "optimizer": ours.state_dict()}, file)
    train(net, ours, range(5, 12))
    saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    other.load_state_dict(saved["model"])
    again = cls(other.named_parameters(), sub, master_weights=master, **settings)
    again.load_state_dict(saved["optimizer"])
    train(other, again, range(5, 12))
    assert same_bits(net, other)
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        mine, theirs = ours.state.get(p, {}), again.state.get(q, {})
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            assert value.dtype == theirs[key].dtype
            assert torch.equal(value, theirs[key])


def test_a_state_of_something_else_is_refused():
    net = small_net()
    sub = subnetwork_of(net)
    ours = SubnetworkAdamW(net.named_parameters(), sub)
    train(net, ours, range(1))
    for other in (sub.random(0), sub.complement()):
        with pytest.raises(
            TrainingError, match=r"state is of masks \(\w+\), the optimizer of .*rand|"
        ):
            SubnetworkAdamW(net.named_parameters(), other).load_state_dict(ours.state_dict())
    dense = torch.optim.AdamW(net.parameters())
    with pytest.raises(TrainingError, match="state is of an optimizer of all weights"):
        ours.load_state_dict(dense.state_dict())
    before = copy.deepcopy(net)
    ours.load_state_dict(ours.state_dict())
    assert same_bits(net, before)


def saved_state(net, sub, **settings):
    ours = SubnetworkAdamW(net.named_parameters(), sub, **settings)
    train(net, ours, range(1))
    return ours.state_dict()


@pytest.mark.parametrize("master", [False, True])
def test_a_state_of_another_precision_is_refused(master):
    """Moments and masters of the other kind would be lost, or kept where nobody wants them."""
    net = small_net(torch.bfloat16)
    sub = subnetwork_of(net)
    state = saved_state(net, sub, master_weights=master)
    for dtype, now in ((torch.bfloat16, not master), (torch.float32, master)):
        other = SubnetworkAdamW(small_net(dtype).named_parameters(), sub, master_weights=now)
        with pytest.raises(
            TrainingError, match=r"state is of weights in bfloat16.*same master_weights"
        ):
            other.load_state_dict(state)
        assert not other.state


def test_masters_make_no_difference_to_the_state_of_fp32_weights():
    net = small_net()
    sub = subnetwork_of(net)
    state = saved_state(net, sub, master_weights=True)
    SubnetworkAdamW(net.named_parameters(), sub).load_state_dict(state)


def test_a_state_goes_by_the_weights_that_are_trained():
    """Neither wrappers' names nor what the masks are called are in its identity."""
    net, other, masks = twins()
    state = saved_state(net, Subnetwork.from_masks(masks, "pair grpo, exact"))
    wrapped = [
        (f"module.{name}".replace("2.", "2._orig_mod."), p) for name, p in other.named_parameters()
    ]
    again = SubnetworkAdamW(wrapped, Subnetwork.from_masks(masks, "mask core, all of 2"))
    other.load_state_dict(net.state_dict())
    again.load_state_dict(state)
    train(other, again, range(1, 3))
    ours = SubnetworkAdamW(net.named_parameters(), Subnetwork.from_masks(masks))
    ours.load_state_dict(state)
    train(net, ours, range(1, 3))
    assert same_bits(net, other)
    masks["0.weight"][0, 0] ^= True
    changed = SubnetworkAdamW(net.named_parameters(), Subnetwork.from_masks(masks, "mask core"))
    with pytest.raises(
        TrainingError, match=r"of pair grpo, exact \(\w+\), .* of mask core \(\w+\)"
    ):
        changed.load_state_dict(state)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.embed(x))


def step_tied(net, ours):
    net(torch.arange(11)).square().mean().backward()
    ours.step()


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("head", ["absent", "the same", "a part"])
def test_tied_weights_count_once(repeated, head):
    """A checkpoint may store the head beside the embedding: the model has one parameter."""
    mask = torch.rand(11, 6, generator=torch.Generator().manual_seed(1)) < 0.4
    net, dense = Tied(), Tied()
    part = mask & (torch.arange(6) < 3)
    heads = {"absent": {}, "the same": {"head.weight": mask}, "a part": {"head.weight": part}}
    sub = Subnetwork.from_masks({"embed.weight": mask, **heads[head]})
    ours = SubnetworkAdamW(net.named_parameters(remove_duplicate=not repeated), sub, lr=1e-2)
    assert [len(g["params"]) for g in ours.param_groups] == [1]
    start = net.embed.weight.detach().clone()
    step_tied(net, ours)
    step_tied(dense, torch.optim.AdamW(dense.parameters(), lr=1e-2))
    assert torch.equal(net.embed.weight, torch.where(mask, dense.embed.weight, start))
    assert ours.state_bytes().state == 8 * int(mask.sum())


@pytest.mark.parametrize("repeated", [False, True])
def test_tied_weights_with_two_masks_are_refused(repeated):
    net = Tied()
    left = torch.arange(6).expand(11, 6) < 3
    sub = Subnetwork.from_masks({"embed.weight": left, "head.weight": ~left})
    with pytest.raises(TrainingError, match=r"head\.weight .*embed\.weight.*leave one of them out"):
        SubnetworkAdamW(net.named_parameters(remove_duplicate=not repeated), sub)
    one = Subnetwork({name: sub[name] for name in sub if name != "embed.weight"})
    with pytest.raises(TrainingError, match=r"lacks: head\.weight; .*remove_duplicate=False"):
        SubnetworkAdamW(net.named_parameters(), one)
    SubnetworkAdamW(net.named_parameters(remove_duplicate=False), one)


def test_the_head_of_a_model_with_another_head_is_not_its_embedding():
    """A reward model has `score` and lacks the head that the pair trained."""
    masks = dict.fromkeys(("embed.weight", "head.weight"), torch.ones(11, 6) > 0)
    named = {
        "embed.weight": nn.Parameter(torch.ones(11, 6)),
        "score.weight": nn.Parameter(torch.ones(1, 6)),
    }
    with pytest.raises(TrainingError, match=r"1 tensors that the model lacks: head\.weight"):
        SubnetworkAdamW(named.items(), Subnetwork.from_masks(masks))


def test_the_norm_counts_the_subnetwork_alone_with_mask_gradients():
    net, dense, masks = twins()
    ours = SubnetworkAdamW(
        net.named_parameters(), Subnetwork.from_masks(masks), lr=1e-2, mask_gradients=True
    )
    for _ in range(2):
        gradients(net, 1)
        gradients(dense, 1)
    norm = torch.nn.utils.clip_grad_norm_(net.parameters(), 1e-3)
    for name, p in dense.named_parameters():
        p.grad *= mask_in(masks, name, p)
    assert float(norm) == pytest.approx(
        float(torch.nn.utils.clip_grad_norm_(dense.parameters(), 1e-3)), rel=1e-6
    )
    assert net[2].weight.grad is None
    assert net[2].bias.grad is None
    start = copy.deepcopy(net)
    ours.step()
    assert_frozen(net, start, masks)


def test_mask_gradients_sees_replaced_parameters():
    net = small_net()
    ours = SubnetworkAdamW(net.named_parameters(), subnetwork_of(net), mask_gradients=True)
    other = nn.Parameter(net[0].weight.detach().clone())
    ours.param_groups[0]["params"][0] = other
    other.grad = torch.ones_like(other)
    with pytest.raises(TrainingError, match=r"0\.weight: replaced"):
        ours.step()


def test_wrapped_names():
    net, plain, masks = twins()
    sub = Subnetwork.from_masks({f"model.{name}": mask for name, mask in masks.items()})
    named = {
        f"module._orig_mod.{name}".replace("2.", "2._checkpoint_wrapped_module."): p
        for name, p in net.named_parameters()
    }
    train(net, SubnetworkAdamW(named.items(), sub), range(2))
    train(plain, SubnetworkAdamW(plain.named_parameters(), sub), range(2))
    assert same_bits(net, plain)
    assert_frozen(net, small_net(), masks)


class Part(nn.Module):
    """Parameters under any names."""

    def __init__(self, shapes):
        super().__init__()
        torch.manual_seed(0)
        self.named = {name: nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}


SPLIT = {f"layers.0.self_attn.{x}_proj.weight": (n, 5) for x, n in (("q", 6), ("k", 3), ("v", 3))}
FUSED = {"layers.0.self_attn.qkv_proj.weight": (12, 5)}
EXPERTS = {
    f"layers.0.mlp.experts.{e}.{m}_proj.weight": (4, 5) for e in range(3) for m in ("gate", "up")
}
STACKED = {"layers.0.mlp.experts.gate_up_proj": (3, 8, 5)}


@pytest.mark.parametrize(
    ("split", "fused"), [(SPLIT, FUSED), (EXPERTS, STACKED)], ids=["qkv", "experts"]
)
def test_fused_and_split_tensors(split, fused):
    """The subnetwork of one form trains the other: parts follow each other in C order."""
    ((name, shape),) = fused.items()
    whole = torch.rand(shape, generator=torch.Generator().manual_seed(3)) < 0.4
    pieces = whole.reshape(-1).split([a * b for a, b in split.values()])
    parts = {n: p.reshape(split[n]) for n, p in zip(split, pieces, strict=True)}
    for masks, shapes in (({name: whole}, split), (parts, fused)):
        named = {n: nn.Parameter(torch.randn(s)) for n, s in shapes.items()}
        before = {n: p.detach().clone() for n, p in named.items()}
        ours = SubnetworkSGD(named.items(), Subnetwork.from_masks(masks), lr=0.1)
        for p in named.values():
            p.grad = torch.ones_like(p)
        ours.step()
        moved = torch.cat([(p != before[n]).reshape(-1) for n, p in named.items()])
        assert torch.equal(moved, whole.reshape(-1))


def test_wrong_models_are_refused():
    net = small_net()
    masks = masks_of(net)
    cases = [
        (
            {"norm.weight": torch.ones(3) > 0, **masks},
            "1 tensors that the model lacks: norm.weight",
        ),
        (
            {"0.weight": torch.ones(33, 70) > 0},
            r"0.weight: \[33, 70\] in .* \[70, 33\] in the model",
        ),
    ]
    for wrong, message in cases:
        with pytest.raises(TrainingError, match=message):
            SubnetworkAdamW(net.named_parameters(), Subnetwork.from_masks(wrong))
    sub = Subnetwork.from_masks(masks)
    for unnamed_parameters in (net.parameters(), [{"params": net.parameters()}]):
        with pytest.raises(TrainingError, match=r"without names: give model.named_parameters\(\)"):
            SubnetworkAdamW(unnamed_parameters, sub)
    with pytest.raises(TrainingError, match="two parameters of one name"):
        SubnetworkAdamW([*net.named_parameters(), *small_net().named_parameters()], sub)
    with pytest.raises(ValueError, match="Invalid learning rate"):
        SubnetworkAdamW(net.named_parameters(), sub, lr=-1.0)
    # a buffer that some checkpoint stored: nothing of it is to be trained
    harmless = Subnetwork.from_masks({"inv_freq": torch.ones(3) < 0, **masks})
    SubnetworkAdamW(net.named_parameters(), harmless)


def test_gradients_and_layouts_that_cannot_be():
    torch.manual_seed(0)
    table = nn.Embedding(7, 3, sparse=True)
    sub = Subnetwork.from_masks({"weight": torch.ones(7, 3) > 0})
    ours = SubnetworkAdamW(table.named_parameters(), sub)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(TrainingError, match="weight: its gradient is sparse"):
        ours.step()
    table.zero_grad()
    SubnetworkAdamW(table.named_parameters(), sub, mask_gradients=True)
    with pytest.raises(TrainingError, match="weight: its gradient is sparse"):
        table(torch.tensor([1])).sum().backward()
    turned = nn.Parameter(torch.ones(3, 7).t())
    with pytest.raises(TrainingError, match="weight: not contiguous"):
        SubnetworkAdamW([("weight", turned)], sub)
    late = SubnetworkSGD([("weight", nn.Parameter(torch.ones(7, 3)))], sub, lr=0.1)
    late.param_groups[0]["params"][0].grad = torch.ones(7, 3)
    late.step()
    late.param_groups[0]["momentum"] = 0.9
    with pytest.raises(TrainingError, match="momentum was 0 at the first step"):
        late.step()


def test_tensors_of_the_subnetwork_that_require_no_gradient_are_refused():
    net, _, masks = twins()
    net.requires_grad_(False)
    net[0].weight.requires_grad_(True)
    with pytest.raises(TrainingError, match=r"3 tensors .* gradients, 0\.bias the first: call"):
        SubnetworkAdamW(net.named_parameters(), Subnetwork.from_masks(masks))
    masks = {name: mask & (name == "0.weight") for name, mask in masks.items()}
    SubnetworkAdamW(net.named_parameters(), Subnetwork.from_masks(masks))


def test_added_parameters_are_frozen():
    net, start, masks = twins()
    ours = SubnetworkAdamW(net.named_parameters(), Subnetwork.from_masks(masks), lr=1e-2)
    head = nn.Parameter(torch.ones(3))
    ours.add_param_group({"params": [("head", head)], "weight_decay": 0.5})
    head.grad = torch.ones(3)
    gradients(net, 0)
    ours.step()
    assert torch.equal(head, torch.ones(3))
    assert_frozen(net, start, masks)
    ours.zero_grad()
    assert head.grad is None
    with pytest.raises(TrainingError, match="without names"):
        ours.add_param_group({"params": [nn.Parameter(torch.ones(3))]})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="NO GPU: optimizers not run on CUDA")
@pytest.mark.parametrize("master", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_cuda(master, fused):
    net, start, masks = twins(torch.bfloat16 if master else torch.float32)
    cpu = copy.deepcopy(net)
    settings = {"lr": 1e-2, "weight_decay": 0.1, "master_weights": master}
    sub = Subnetwork.from_masks(masks)
    net.cuda()
    ours = SubnetworkAdamW(net.named_parameters(), sub, fused=fused, **settings)
    theirs = SubnetworkAdamW(cpu.named_parameters(), sub, **settings)
    for step in range(20):
        gradients(cpu, step)
        for p, q in zip(net.parameters(), cpu.parameters(), strict=True):
            p.grad = q.grad.cuda()
        ours.step()
        theirs.step()
    for p, q in zip(net.parameters(), cpu.parameters(), strict=True):
        assert torch.allclose(p.cpu(), q, rtol=1e-2 if master else 1e-4, atol=1e-6)
    assert_frozen(net.cpu(), start, masks)
