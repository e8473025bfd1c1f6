"""A spec and the shapes of its sources -> every task of the build."""
