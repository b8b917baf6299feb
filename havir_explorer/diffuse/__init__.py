"""Decoded conditions to pictures: Versatile Diffusion, its weights and its sampler."""
