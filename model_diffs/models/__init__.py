"""Models: what they are made of, where their files are, how they are loaded and run.

architectures  which weight matrices a stored tensor holds, by its name
anatomy        the parts of a live model, found by structure
configuration  what a config.json must be and says
files          folders and hub snapshots: resolve, fingerprint, errors of the hub in one line
checkpoints    stored weights read by name from mapped files; two checkpoints in lockstep
devices        devices, dtypes and processes, without transformers
gguf           GGUF files made into ordinary model folders
held           weights kept in half precision by a model that computes in fp32
shapes         how large a model is, from headers or a configuration alone
loading        models and tokenizers loaded, placed and read layer by layer
generation     greedy or sampled text, the same for the same seed
"""
