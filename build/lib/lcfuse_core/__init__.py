"""
Land cover at 10 m, learnt from labels at 500 m.

The module behind the book. Each file has one job and imports only from the floors below it:

    errors, cells < legends, settings, landscape < scores, networks, transition, pixel_losses, layers, sensors, style
    < cell_losses, world, scenes, ledger < losses, patches, figures, protocol < runs, charts, baselines
    < training < forest, adaptation < calibration < agreement, fusion, chapter < bench < ladder

on a side of their own, from a scene's files to its map:

    windows, rasters < products, worklog, coarse < mapping, members < home, streaming < scene_map < map_commands

with areas, swipe and sample_scene beside them; and for the real data:

    yaml_lines < manifest < sizes, transfer, archives < flow, fetched < fetch < data_commands < __main__

Arrays are channels first, rows run north to south; `easting, northing` are metres, `row, col` pixels.
Class codes are those of the file they came from; networks count the eight scored classes from zero.
"""

__version__ = "0.1.0"
