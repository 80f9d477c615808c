"""JOIN: host + proj_in + donor + proj_out + head -> an ordinary transformers model."""
