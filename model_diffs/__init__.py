"""What an intervention did to a language model: rooms in the order of their imports.

`core`, `models`, `data`, `stats`, `activations`, `evaluation`, `diagnostics`, `unlearning`,
`attacks`, `dictionaries`, `importance`, `miniature`, `pipeline`, `report`; docs/architecture.md
says what each holds.
"""
