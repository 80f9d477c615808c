"""READ: what tensors a checkpoint has and where their bytes are. No torch."""
