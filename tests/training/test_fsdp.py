"""FSDP 2 and DDP: shards of odd tensors on CPU processes train as one process does, to the bit.

Every process gets the same batch, and there are two of them: the mean of two equal gradients is the
gradient, whatever the order of the sum.
"""

import copy
import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Replicate,
    Shard,
    distribute_tensor,
    init_device_mesh,
)
from torch.nn.parallel import DistributedDataParallel

from rlsparse_ray.errors import TrainingError
from rlsparse_ray.training import Subnetwork, SubnetworkAdamW, SubnetworkSGD
from tests.training.nets import assert_frozen, gradients, masks_of, same_bits, small_net, train

WORLD = 2
STEPS = range(6)
MANY_STEPS = range(200)
SETTINGS = {"lr": 1e-2, "weight_decay": 0.1, "master_weights": True}


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_processes(tmp_path):
    """One start of the processes for all that they check: importing torch takes most of it."""
    mp.spawn(work, (free_port(), tmp_path), nprocs=WORLD)
    assert sorted(path.name for path in tmp_path.glob("*.done")) == ["0.done", "1.done"]


def work(rank, port, folder: Path):
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    check_shards(torch.float32, MANY_STEPS)
    check_shards(torch.bfloat16, STEPS)
    check_clipping_and_sgd()
    check_ddp()
    check_placements()
    check_partial_gradients()
    (folder / f"{rank}.done").touch()
    dist.destroy_process_group()


def sharded(net):
    """Five rows over two processes are three and two; a tensor's last shard may be empty."""
    mesh = init_device_mesh("cpu", (WORLD,))
    fully_shard(net[0], mesh=mesh)
    fully_shard(net, mesh=mesh)
    return net


def whole(net, like):
    """The sharded weights in a model of one process."""
    copied = copy.deepcopy(like)
    values = {name: p.full_tensor() for name, p in net.named_parameters()}
    copied.load_state_dict(values)
    return copied


def check_shards(dtype, steps):
    start = small_net(dtype)
    masks = masks_of(start)
    sub = Subnetwork.from_masks(masks)
    one, net = copy.deepcopy(start), sharded(copy.deepcopy(start))
    train(one, SubnetworkAdamW(one.named_parameters(), sub, **SETTINGS), steps)
    ours = SubnetworkAdamW(net.named_parameters(), sub, **SETTINGS)
    train(net, ours, steps[:-3])
    weights, state = {n: p.to_local().clone() for n, p in net.named_parameters()}, ours.state_dict()
    state = copy.deepcopy(state)
    train(net, ours, steps[-3:])
    found = whole(net, start)
    assert same_bits(found, one)
    assert_frozen(found, start, masks)
    check_bytes(ours, sub)
    check_resume(net, sub, weights, state, steps[-3:])
    assert same_bits(whole(net, start), one)


def check_bytes(ours, sub):
    """Both shards together hold the state of every entry once."""
    total = torch.tensor(ours.state_bytes().state)
    dist.all_reduce(total)
    assert int(total) == 8 * sub.size


def check_resume(net, sub, weights, state, steps):
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.to_local().copy_(weights[name])
    again = SubnetworkAdamW(net.named_parameters(), sub, **SETTINGS)
    others = [None] * WORLD
    dist.all_gather_object(others, state)
    with pytest.raises(TrainingError, match="on as many processes"):
        again.load_state_dict(others[1 - dist.get_rank()])
    again.load_state_dict(others[dist.get_rank()])
    train(net, again, steps)


def check_clipping_and_sgd():
    """Masked gradients give the norm of one process, and the same steps."""
    start = small_net()
    masks = masks_of(start)
    sub = Subnetwork.from_masks(masks)
    one, net = copy.deepcopy(start), sharded(copy.deepcopy(start))
    ours = [
        SubnetworkSGD(m.named_parameters(), sub, lr=0.1, momentum=0.9, mask_gradients=True)
        for m in (one, net)
    ]
    norms = []
    for model, each in zip((one, net), ours, strict=True):
        gradients(model, 0)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)
        norms.append(float(norm.full_tensor() if isinstance(norm, DTensor) else norm))
        each.step()
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    gradients(dense := copy.deepcopy(start), 0)
    assert float(torch.nn.utils.clip_grad_norm_(dense.parameters(), 1e9)) > 1.2 * norms[0]
    assert same_bits(whole(net, start), one)


def check_ddp():
    start = small_net()
    masks = masks_of(start)
    sub = Subnetwork.from_masks(masks)
    for mask_gradients, steps in ((False, MANY_STEPS), (True, STEPS)):
        one, net = copy.deepcopy(start), DistributedDataParallel(copy.deepcopy(start))
        settings = SETTINGS | {"mask_gradients": mask_gradients}
        for model in (one, net):
            ours = SubnetworkAdamW(model.named_parameters(), sub, **settings)
            clip = lambda m=model: torch.nn.utils.clip_grad_norm_(m.parameters(), 0.1)  # noqa: E731
            train(model, ours, steps, clip)
        if mask_gradients:
            # DDP gives frozen tensors zeros where one process has none: the norm's last bit differs
            for p, q in zip(net.parameters(), one.parameters(), strict=True):
                assert torch.allclose(p, q, rtol=1e-6, atol=1e-7)
        else:
            assert same_bits(net.module, one)
        assert_frozen(net.module, start, masks)


def check_placements():
    """Other placements of fully_shard's DTensors: columns, and copies."""
    mesh = init_device_mesh("cpu", (WORLD,))
    values = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    mask = values > 0
    sub = Subnetwork.from_masks({"weight": mask})
    for placement in (Shard(1), Shard(0), Replicate()):
        weight = torch.nn.Parameter(distribute_tensor(values.clone(), mesh, [placement]))
        weight.grad = distribute_tensor(torch.ones(5, 7), mesh, [placement])
        SubnetworkSGD([("weight", weight)], sub, lr=1.0).step()
        assert torch.equal(weight.full_tensor(), torch.where(mask, values - 1, values))


def check_partial_gradients():
    """Copies of a weight under a batch in shards: every process has a summand of the gradient."""
    mesh = init_device_mesh("cpu", (WORLD,))
    random = torch.Generator().manual_seed(0)
    values, x = torch.randn(5, 7, generator=random), torch.randn(4, 7, generator=random)
    batch, mask = distribute_tensor(x, mesh, [Shard(0)]), values > 0
    want = torch.where(mask, values - 2 * x.sum(0), values)
    for mask_gradients in (False, True):
        weight = torch.nn.Parameter(distribute_tensor(values.clone(), mesh, [Replicate()]))
        sub = Subnetwork.from_masks({"weight": mask})
        ours = SubnetworkSGD([("weight", weight)], sub, lr=1.0, mask_gradients=mask_gradients)
        for _ in range(2):
            batch.mm(weight.t()).sum().backward()
        assert weight.grad.placements == ((Replicate() if mask_gradients else Partial()),)
        ours.step()
        assert torch.allclose(weight.to_local(), want, atol=1e-5)
        # summands of a weight in shards; the second process has none of the entries
        weight = torch.nn.Parameter(distribute_tensor(values.clone(), mesh, [Shard(0)]))
        rows = torch.arange(5)[:, None].expand(5, 7) < 2
        sub = Subnetwork.from_masks({"weight": rows})
        weight.grad = DTensor.from_local(torch.ones(5, 7), mesh, [Partial()])
        SubnetworkSGD([("weight", weight)], sub, lr=1.0).step()
        assert torch.equal(weight.full_tensor(), torch.where(rows, values - WORLD, values))
