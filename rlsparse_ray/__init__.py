"""Which weights did RL change, in every public model pair, and is that more than chance?"""

__version__ = "0.1.0"
