"""What methods for spatial domains share: positions, clustering of the embedding, refinement."""
