"""3. Voxels to what guides the generator: latents from spatial voxels, CLIP embeddings from semantic ones."""
