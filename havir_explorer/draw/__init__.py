"""Pictures without widgets: cortical maps, meshes, colours."""
