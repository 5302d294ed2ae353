"""Where a store is: folders and buckets, whole files, leases, and DuckDB's way to them."""
