"""
Land cover at 10 m, learnt from labels at 500 m.

The module behind the book. Each file has one job and imports only from the floors below it:

    errors, cells < legends, settings, landscape < scores, networks, transition, pixel_losses, layers, sensors, style
    < cell_losses, world, scenes, ledger, mapping < losses, patches, figures, protocol < runs, charts, baselines
    < training < forest, adaptation < calibration < fusion, chapter < bench < ladder

and on a side of their own, for the real data:

    yaml_lines < manifest < sizes, transfer, archives < flow, fetched < fetch < data_commands < __main__

Arrays are channels first, rows run north to south; `easting, northing` are metres, `row, col` pixels.
Class codes are those of the file they came from; networks count the eight scored classes from zero.
"""

__version__ = "0.1.0"
