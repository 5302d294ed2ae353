"""In which number formats a run trains and stores its weights. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Precision:
    """Dtypes by the names that torch and transformers know them by."""

    weights: str
    """Of the model in training: its forward and backward pass compute in it as well."""
    masters: bool
    """Keep fp32 values of the weights in the optimizer; after each step the weights are their
    rounding (to nearest even), so the policy that samples is at any time the one that is stored."""
    stored: str

    @property
    def cast_beside(self) -> str | None:
        """The folder beside the stored weights with their bf16 rounding, if there is one."""
        return "bf16" if self.stored == "float32" else None


PRECISIONS = {
    # Weights, arithmetic and optimizer in fp32; what is stored is rounded once, at the end.
    "fp32-master": Precision("float32", masters=False, stored="bfloat16"),
    # What Megatron and DeepSpeed call bf16 training. Not torch.autocast, which would keep the
    # weights, the norms and the softmax in fp32 and round inside single operations only.
    "bf16-compute": Precision("bfloat16", masters=True, stored="bfloat16"),
    # Nothing is kept in fp32: an update below half an ULP of its weight is lost for good.
    "bf16": Precision("bfloat16", masters=False, stored="bfloat16"),
    # As fp32-master, and the fp32 weights are what counts; their bf16 rounding lies beside them.
    "fp32": Precision("float32", masters=False, stored="float32"),
}
