"""Every claim of the papers, tested on runs that anybody can repeat.

`phases.reproduce` trains the runs of a scale, measures them with the extraction, the overlap pass
and the queries that any corpus gets, and `claims` says of each claim whether it holds.
"""
