"""Data: legends, bands, the MODIS grid, image files, patches, packed scenes and sources of training data."""
