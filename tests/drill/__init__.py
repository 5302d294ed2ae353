"""The fault drill: what is lost, and what is done again, when parts of a cluster die.

python -m tests.drill [FAULT ...]
"""

import os

# ray reads them when it is imported; on Linux the first keeps a cluster on 127.0.0.1
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
