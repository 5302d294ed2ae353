"""Real training runs of eight algorithms on small models and tasks whose answers can be checked.

`tune.tune` makes one run of the fields in `runs.Run`; `defaults` says with which settings each
algorithm learns the shipped task.
"""
