"""What methods for RNA velocity share: moments, the velocity graph and what follows from it."""
