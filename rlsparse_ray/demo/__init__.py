"""Real base and RL-tuned checkpoints, made on a laptop's CPU without any network.

`models.make_models` is the way in; it imports torch only in the processes that train.
"""
