"""Land-cover maps of scenes and of any place: catalogues, reading, windowed prediction, fusion, GeoTIFFs."""
