"""LOAD: layer artifact -> DonorLayer, a frozen module that computes what the layer computed inside its model."""
