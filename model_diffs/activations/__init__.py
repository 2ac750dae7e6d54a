"""Hidden states: one pass over the texts for all statistics, saved for the steps that need them.

tokens      texts as token ids, which positions count, padded batches
sums        streaming sums over hidden states
passes      models over the batches: side by side, or one by one against a disk cache
saved       statistics on disk, found by the content they were computed from
sinks       attention sinks at the first position: found in the base, left out of both models
skeleton    a model without weights, whose parts are read when they are used
blocks      models block by block in lockstep, where they do not fit
collecting  makes missing statistics in one pass
store       what steps ask for: saved statistics, made where missing
"""
