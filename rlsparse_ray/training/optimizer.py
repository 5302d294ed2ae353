"""Optimizers that hold state for, and write to, the entries of a subnetwork alone.

The entries of a tensor are gathered into a compact vector, torch's own update runs on it, and the
result is written back. So an entry moves exactly as a dense torch optimizer would move it, and no
other entry is ever written: neither weight decay nor momentum can reach a frozen weight.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import xxhash
from torch import Tensor
from torch.optim import Optimizer

from rlsparse_ray.errors import TrainingError
from rlsparse_ray.training.fitting import fit, short_names
from rlsparse_ray.training.shards import gradient_of, indices_of, local_of, window_of
from rlsparse_ray.training.subnetwork import Subnetwork, TensorMask

Parameters = Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]]
State = dict[str, Any]

_CPU_CHUNK = 1 << 18
"""Entries updated at a time: their vectors stay in the cache and in malloc's own memory. A step on
16 M entries of one tensor takes 80 ms and not 270, and little is transient."""

_GPU_CHUNK = 1 << 22
"""The same where a launch costs some microseconds: 100 MB of transient memory."""


@dataclass(frozen=True, slots=True)
class StateBytes:
    """Bytes that an optimizer holds between two steps."""

    state: int
    """Moments: of AdamW two values an entry, of SGD with momentum one."""
    masters: int
    """fp32 values of entries whose weights are stored in 16 bits."""
    indices: int
    """Where the entries lie in their tensors."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.state + self.masters + self.indices


class SubnetworkOptimizer(Optimizer):
    """What the optimizers of a subnetwork share; see SubnetworkAdamW and SubnetworkSGD.

    A `torch.optim.Optimizer` in every respect: groups with other settings, schedulers, closures,
    zero_grad, state_dict. Parameters are given with their names, since masks go by names.

    - A parameter that the subnetwork does not know stays in its group, so that zero_grad clears
      it, and is frozen as a whole.
    - Under DDP nothing changes: all processes hold all weights. Under FSDP 2 (`fully_shard`) and
      other DTensors that are sharded or replicated, each process updates the entries of its own
      shard; shard first, then make the optimizer. FSDP 1 flattens tensors of the model and is
      refused by shape.
    - `state_dict` is that of this process, and fits the same weights of the same shards, in the
      same dtype and with the same `master_weights`: under FSDP 2 each process saves and loads its
      own.
    - Masters are what the weights are: what else is written to a weight in mid-run is overwritten
      by its next update, unless a state with the masters of these values is loaded too.
    - torch.nn.utils.clip_grad_norm_ sees the gradients of all weights, as in a run that trains all
      of them. With `mask_gradients` those of frozen weights are zero (none where the whole tensor
      is frozen) as soon as they are there, so that the norm counts the subnetwork alone.
    """

    def __init__(
        self,
        params: Parameters,
        subnetwork: Subnetwork,
        defaults: dict[str, Any],
        *,
        master_weights: bool,
        mask_gradients: bool,
    ) -> None:
        groups = _named_groups(params)
        named = [entry for group in groups for entry in group["params"]]
        shapes = {name: tuple(parameter.shape) for name, parameter in named}
        if len(shapes) < len(named):
            raise TrainingError("two parameters of one name: give those of one model")
        aliases: dict[Tensor, list[str]] = {}
        for name, parameter in named:
            aliases.setdefault(parameter, []).append(name)
        self.subnetwork = subnetwork
        self._masters = master_weights
        fitted = fit(subnetwork, shapes, aliases.values())
        self._masks = {name: mask for name, mask in fitted.items() if mask.size}
        self._places: dict[Tensor, Tensor] = {}
        self._hooked: set[Tensor] | None = set() if mask_gradients else None
        for group in groups:
            group["params"] = _once(group["params"], aliases, self._masks)
        _check_trainable([entry for group in groups for entry in group["params"]], self._masks)
        super().__init__(groups, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters that the subnetwork does not know: they are frozen, zero_grad clears them.

        Raises:
            TrainingError: they have no names.
        """
        (group,) = _named_groups([param_group])
        # a group may be empty: one of all weights without decay, say
        super().add_param_group({"param_names": [], **group})
        added = self.param_groups[-1]
        for name, parameter in zip(added["param_names"], added["params"], strict=True):
            if name in self._masks:
                window_of(name, parameter)
            if self._hooked is not None and parameter.requires_grad:
                self._hook(name, parameter)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the entries of every parameter that has a gradient.

        Raises:
            TrainingError: a gradient is sparse, or the parameters were replaced since
                `mask_gradients` took hold of them. A sparse gradient that `mask_gradients` meets
                is refused in the backward pass.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group, name, parameter in self._named():
            if parameter.grad is None or name not in self._masks:
                continue
            if self._hooked is not None and parameter not in self._hooked:
                raise TrainingError(f"{name}: replaced or thawed since: make the optimizer later")
            # also where this process has no entry: processes may have to exchange gradients
            gradient = gradient_of(name, parameter)
            places = self._places_of(name, parameter)
            if places.numel():
                self._step_tensor(group, parameter, gradient, places)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The state of this process, with what it is the state of."""
        return {**super().state_dict(), **self._identity()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state; the steps that follow are those of an unbroken run, to the bit.

        Raises:
            TrainingError: it is the state of another subnetwork, of another shard or of another
                precision.
        """
        _check_same(state_dict, self._identity())
        own = [group["param_names"] for group in self.param_groups]
        super().load_state_dict(state_dict)
        # torch takes the names from the state: a wrapper's, which no mask here goes by
        for group, names in zip(self.param_groups, own, strict=True):
            group["param_names"] = names
        # torch has just cast it to the dtype of the weights: masters would lose what they are for
        saved = [i for group in state_dict["param_groups"] for i in group["params"]]
        for number, (_, _, parameter) in zip(saved, self._named(), strict=True):
            for key, value in state_dict["state"].get(number, {}).items():
                if key != "step":
                    self.state[parameter][key] = value.to(parameter.device, copy=True)

    def state_bytes(self) -> StateBytes:
        """What the optimizer of this process holds; all of it after the first step."""
        held = [(key, v) for state in self.state.values() for key, v in state.items() if v.dim()]
        masters = sum(v.nbytes for key, v in held if key == "master")
        moments = sum(v.nbytes for key, v in held if key != "master")
        return StateBytes(moments, masters, sum(p.nbytes for p in self._places.values()))

    def _begin(self, group: dict[str, Any], values: Tensor) -> State:
        """The state of a tensor before its first step; `values` are its entries."""
        raise NotImplementedError

    def _update(self, group: dict[str, Any], values: Tensor, grads: Tensor, state: State) -> None:
        """One step on entries, in place; `state` has slices of what `_begin` made."""
        raise NotImplementedError

    def _named(self) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
        for group in self.param_groups:
            for name, parameter in zip(group["param_names"], group["params"], strict=True):
                yield group, name, parameter

    def _places_of(self, name: str, parameter: Tensor) -> Tensor:
        """Found when they are first needed: until then the parameter may move to its device."""
        found = self._places.get(parameter)
        if found is None:
            mask, window = self._masks[name], window_of(name, parameter)
            found = indices_of(mask, window, local_of(parameter).device)
            self._places[parameter] = found
        return found

    def _step_tensor(
        self, group: dict[str, Any], parameter: Tensor, gradient: Tensor, places: Tensor
    ) -> None:
        weights = local_of(parameter).view(-1)
        grads = local_of(gradient).reshape(-1)
        state = self.state[parameter]
        if not state:
            state |= self._first_state(group, weights, places)
        steps = {}
        for start in range(0, len(places), chunk := _chunk(weights.device)):
            part = slice(start, start + chunk)
            some = places[part]
            # a step counts once, though torch counts it up for every part
            steps = {k: v.clone() for k, v in state.items() if v.dim() == 0}
            piece = {k: v[part] for k, v in state.items() if v.dim()} | steps
            master = piece.pop("master", None)
            values = weights.index_select(0, some) if master is None else master
            self._update(group, values, grads.index_select(0, some).to(values.dtype), piece)
            weights.index_copy_(0, some.long(), values.to(weights.dtype))
        state |= steps

    def _first_state(self, group: dict[str, Any], weights: Tensor, places: Tensor) -> State:
        values = weights.index_select(0, places)
        if self._has_masters(values.dtype):
            values = values.float()
            return {"master": values} | self._begin(group, values)
        return self._begin(group, values)

    def _hook(self, name: str, parameter: Tensor) -> None:
        assert self._hooked is not None

        def keep_entries(owner: Tensor) -> None:
            if name not in self._masks:
                owner.grad = None
            elif owner.grad is not None:
                owner.grad = gradient_of(name, owner)
                grads = local_of(owner.grad).view(-1)
                places = self._places_of(name, owner).long()
                kept = grads[places]
                grads.zero_().index_copy_(0, places, kept)

        parameter.register_post_accumulate_grad_hook(keep_entries)  # type: ignore[no-untyped-call]
        self._hooked.add(parameter)

    def _has_masters(self, dtype: torch.dtype) -> bool:
        return self._masters and dtype in (torch.bfloat16, torch.float16)

    def _identity(self) -> dict[str, str]:
        """What a state is of: the subnetwork in words; a hash of parameters, what this process
        holds of them and their masks; the precision of the weights that are trained."""
        digest, precisions = xxhash.xxh3_64(), set()
        short = short_names(name for _, name, _ in self._named())
        for _, name, parameter in self._named():
            digest.update(f"{short[name]} {window_of(name, parameter)}\n".encode())
            if name in self._masks:
                digest.update(self._masks[name].bits.data)
                masters = " with master_weights" * self._has_masters(parameter.dtype)
                precisions.add(f"{str(parameter.dtype).removeprefix('torch.')}{masters}")
        return {
            "subnetwork": self.subnetwork.source,
            "xxh3": digest.hexdigest(),
            "precision": ", ".join(sorted(precisions)),
        }


def _chunk(device: torch.device) -> int:
    return _CPU_CHUNK if device.type == "cpu" else _GPU_CHUNK


def _named_groups(params: Parameters) -> list[dict[str, Any]]:
    """Groups whose params are lists of (name, parameter)."""
    given: list[Any] = list(params)
    groups = given if given and isinstance(given[0], dict) else [{"params": given}]
    found = [{**group, "params": list(group["params"])} for group in groups]
    if not all(isinstance(entry, tuple) for group in found for entry in group["params"]):
        raise TrainingError(
            "parameters without names: give model.named_parameters(), or groups of such"
        )
    return found


def _check_same(state: dict[str, Any], mine: dict[str, str]) -> None:
    """Raise unless a state is of what `mine` says; what the subnetwork is called does not count."""
    if "subnetwork" not in state:
        raise TrainingError(
            f"this state is of an optimizer of all weights, the optimizer of {mine['subnetwork']}: "
            "begin anew"
        )
    if state.get("xxh3") != mine["xxh3"]:
        raise TrainingError(
            f"this state is of {state['subnetwork']} ({state.get('xxh3')}), the optimizer of "
            f"{mine['subnetwork']} ({mine['xxh3']}): load the subnetwork that it was trained with, "
            "on as many processes, with the parameters in the same order"
        )
    if state["precision"] != mine["precision"]:
        raise TrainingError(
            f"this state is of weights in {state['precision']}, the optimizer of weights in "
            f"{mine['precision']}: load the model in the same dtype, with the same master_weights"
        )


def _check_trainable(entries: list[tuple[str, Tensor]], masks: dict[str, TensorMask]) -> None:
    frozen = [name for name, parameter in entries if name in masks and not parameter.requires_grad]
    if frozen:
        raise TrainingError(
            f"{len(frozen)} tensors of the subnetwork do not require gradients, {frozen[0]} the "
            "first: call requires_grad_() on them, or leave them out of the subnetwork"
        )


def _once(
    entries: list[tuple[str, Tensor]],
    aliases: dict[Tensor, list[str]],
    masks: dict[str, TensorMask],
) -> list[tuple[str, Tensor]]:
    """The entries less further names of tied weights, which torch would step twice."""
    names = {p: next((n for n in known if n in masks), known[0]) for p, known in aliases.items()}
    return [(name, parameter) for name, parameter in entries if names[parameter] == name]
