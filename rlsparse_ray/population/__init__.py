"""Over many pairs: the overlaps of all of them, and what a group has in common."""
