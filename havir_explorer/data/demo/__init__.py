"""The teaching world: synthetic scenes, synthetic subjects, and the small Versatile Diffusion trained on them."""
