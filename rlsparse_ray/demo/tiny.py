"""The tiny family of the demo: real SFT, DPO and GRPO runs of TRL on one CPU thread.

python -m rlsparse_ray.demo.tiny --models DIR NAME [NAME ...]

Every run loads its bf16 base into fp32, trains fp32 master weights and stores bf16, which is how RL
frameworks do it and what decides which weights change at all.
"""

from __future__ import annotations

from rlsparse_ray.experiments.runs import Run
from rlsparse_ray.experiments.tune import tune_named

# Measured with torch 2.13.0, trl 1.16.0 on two cores, two processes: 49 s in all, imports included.
# Reward before -> after, and density (weights whose bf16 value changed / all); run twice, every
# run gives the same bytes.
#   tiny-a-grpo-seed0      0.412 -> 0.534  0.517
#   tiny-a-grpo-seed1      0.412 -> 0.535  0.515
#   tiny-a-grpo-sub-seed0  0.335 -> 0.513  0.560
#   tiny-a-sft-seed0       0.412 -> 0.885  0.925
#   tiny-a-dpo-seed0       0.412 -> 0.518  0.527
#   tiny-b-grpo-seed0      0.428 -> 0.534  0.439
#   tiny-b-grpo-seed1      0.428 -> 0.535  0.445
TINY_RUNS = (
    Run("tiny-a-grpo-seed0", "tiny-a", "GRPO", 0, "addition", 60, 1e-5, save_every=12),
    Run("tiny-a-grpo-seed1", "tiny-a", "GRPO", 1, "addition", 60, 1e-5),
    Run("tiny-a-grpo-sub-seed0", "tiny-a", "GRPO", 0, "subtraction", 60, 1e-5),
    Run("tiny-a-sft-seed0", "tiny-a", "SFT", 0, "addition", 60, 1e-4),
    Run("tiny-a-dpo-seed0", "tiny-a", "DPO", 0, "addition", 60, 8e-6, kl=0.1),
    Run("tiny-b-grpo-seed0", "tiny-b", "GRPO", 0, "addition", 60, 1e-5),
    Run("tiny-b-grpo-seed1", "tiny-b", "GRPO", 1, "addition", 60, 1e-5),
)


if __name__ == "__main__":
    tune_named(TINY_RUNS)
