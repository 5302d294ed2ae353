"""Real servers on 127.0.0.1 for tests and benchmarks, behind a proxy that records and disturbs."""
