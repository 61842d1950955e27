"""
Land cover at 10 m, learned from labels at 500 m: the module behind the book.

Nine subpackages, in the order in which data flow; each imports only from itself and from those before it:

    download   the manifest, transfers, archives, the record of what was verified
    data       legends, bands, the MODIS grid, image files, patches, packed scenes, sources of training data
    sample     the synthetic world: land cover, what the sensors see, the files
    models     networks, losses, label-transition matrices, random forests
    scoring    accuracy measures, intervals, areas, the protocol, identity of data, the ledger of results, claims
    training   plans, the training loop, checkpoints, several processes, prediction
    methods    baselines, adaptation to the target region, fusion, the experiment, the registry of methods
    mapping    maps of scenes and of any place: catalogues, reading, coarse maps, windows, prediction, GeoTIFFs
    book       what notebooks need: set-up, parameters, reruns, figures

`errors` and `_runtime` stand below all of them, the command line `python -m lcfuse_core` above.
Arrays are channels first; rows run from north to south. `easting, northing` are in metres, `row, col` in pixels.
"""

__version__ = "0.1.0"
