"""What keeps a store right over time: refresh, audits, deep checks, garbage, watching."""
