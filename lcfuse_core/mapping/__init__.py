"""Land-cover maps of whole scenes: reading a scene, windowed prediction, fusion and writing GeoTIFFs."""
