"""Shared by all tests: nothing reads the network, nothing writes outside pytest's own directories."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
