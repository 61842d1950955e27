"""Data: legends, the MODIS grid, image files, patches, downloads, packed scenes and the synthetic sample."""
