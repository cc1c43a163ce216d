"""What proves a store, for whoever writes a backend: faults, a disk model, checks, and one contract suite.

`faults` has a disk that fails on purpose, `model_disk` one in memory that forgets what was not synced,
`checks` the five things that hold after every crash, `processes` children that are killed at random,
`faulty_bucket` and `fault_proxy` fail where objects are kept, `contract` is the suite that each backend
subclasses, `contract_bucket` the one of buckets, `strategies` has generators
for Hypothesis. The contracts need pytest and `strategies` needs Hypothesis; the rest needs Holdfast alone.
"""
