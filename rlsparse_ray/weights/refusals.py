"""Formats that have no value a parameter in a readable place, and what to do about each."""

import re
from collections.abc import Iterable
from typing import Any

from rlsparse_ray.errors import CheckpointError
from rlsparse_ray.weights.places import Folder
from rlsparse_ray.weights.spec import TensorSpec

READABLE_METHODS = frozenset({"fp8", "mxfp4"})
"""Values of quant_method whose weights can be dequantised: scales lie beside the values."""

_PACKED = (".qweight", ".qzeros", ".weight_packed", ".weight.absmax", ".SCB")
_UNPACK = "compare the unquantised model, or dequantise it and save it as bf16 safetensors"

_LOAD = "AutoModelForCausalLM.from_pretrained"

_UNMERGED = (
    (
        re.compile(r"model_world_size_\d+_rank_\d+\.pt"),
        "FSDP shards of verl",
        "python -m verl.model_merger merge --backend fsdp --local_dir {folder} --target_dir NEW",
    ),
    (
        re.compile(r"\.metadata|.*\.distcp"),
        "a distributed checkpoint of torch (DCP)",
        "python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} NEW.pt",
    ),
    (
        re.compile(r"zero_to_fp32\.py|.*_optim_states\.pt|mp_rank_\d+_model_states\.pt"),
        "a DeepSpeed ZeRO checkpoint",
        "cd {folder} && python zero_to_fp32.py . NEW --safe_serialization",
    ),
    (
        re.compile(r"latest_checkpointed_iteration\.txt|model_optim_rng\.pt|mp_rank_\d+.*"),
        "a Megatron checkpoint",
        "AutoBridge.export_ckpt of Megatron Bridge, or, if verl wrote it, "
        "python -m verl.model_merger merge --backend megatron --local_dir {folder} "
        "--target_dir NEW",
    ),
)


def refuse_unmerged(folder: Folder, names: Iterable[str]) -> None:
    """Refuse the shards that a training framework keeps for itself.

    Raises:
        CheckpointError: one of `names` is of such a format; the message has the command that
            merges it.
    """
    names = list(names)
    local = "://" not in folder.source
    place, first = (folder.source, "") if local else ("FOLDER", "download it and ")
    for pattern, what, command in _UNMERGED:
        if found := [name for name in names if pattern.fullmatch(name)]:
            raise CheckpointError(
                f"{folder.source}: {what} ({some(found)}), not a model yet: {first}merge it "
                f"first: {command.format(folder=place)}"
            )


def nothing_to_read(folder: Folder) -> CheckpointError:
    """What is there instead of a model."""
    if ggufs := [name for name in folder.files if name.endswith(".gguf")]:
        return CheckpointError(
            f"{folder.source}: no safetensors, only {some(ggufs)}: convert with "
            f'{_LOAD}(folder, gguf_file="{ggufs[0]}").save_pretrained(new_folder)'
        )
    found = some(folder.files) or "nothing"
    return CheckpointError(
        f"{folder.source}: no safetensors file (found {found}): a model folder holds "
        "model.safetensors or model.safetensors.index.json (or pytorch_model.bin)"
    )


def refuse_quantised(place: str, quantisation: Any) -> None:
    """Refuse by `quantization_config` of the config.json at `place`.

    Raises:
        CheckpointError: with the method's name.
    """
    if quantisation is None:
        return
    named = quantisation.get("quant_method") if isinstance(quantisation, dict) else None
    method = str(named or "unnamed method")
    if method not in READABLE_METHODS:
        raise CheckpointError(
            f"{place}: quantised weights (quant_method {method}) cannot be compared: {_UNPACK}"
        )


def refuse_packed(tensors: Iterable[TensorSpec]) -> None:
    """Refuse by the names that GPTQ, AWQ, bitsandbytes and compressed-tensors give.

    Raises:
        CheckpointError: naming the first such tensor.
    """
    for tensor in tensors:
        if tensor.name.endswith(_PACKED) or ".quant_state." in tensor.name:
            raise CheckpointError(
                f"{tensor.file.path}: tensor {tensor.name}: packed quantised weights, "
                f"which have no value a parameter: {_UNPACK}"
            )


def some(names: Iterable[str], most: int = 3) -> str:
    """The first few names, and how many more there are.

    >>> some(["d", "c", "b", "a"])
    'a, b, c and 1 more'
    """
    names = sorted(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
