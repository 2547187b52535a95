"""Tests of watch on real images, folders and processes."""
