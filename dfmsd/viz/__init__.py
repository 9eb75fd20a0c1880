"""Figures of detections, feature maps, masks, curves and tables of runs; returned, never shown.

Every function returns a closed `matplotlib` figure: a notebook cell that ends in it shows it once,
a script calls `savefig`. One style for all; the colours are Okabe and Ito's and the maps viridis,
which colour-blind readers can tell apart.
"""

from __future__ import annotations

from dfmsd.viz.charts import bars_figure, curves_figure, stacked_figure
from dfmsd.viz.intervals import differences_figure, tradeoff_figure
from dfmsd.viz.keeps import keep_masks_figure, masks_figure
from dfmsd.viz.maps import feature_maps_figure, heat_over_image, levels_figure
from dfmsd.viz.pictures import detections_figure, pictures_figure, regions_figure, scene_sheet
from dfmsd.viz.plots import channels_figure, histograms_figure, matrix_figure, scatter_figure
from dfmsd.viz.spectra import spectrum_figure

__all__ = [
    "bars_figure",
    "channels_figure",
    "curves_figure",
    "detections_figure",
    "differences_figure",
    "feature_maps_figure",
    "heat_over_image",
    "histograms_figure",
    "keep_masks_figure",
    "levels_figure",
    "masks_figure",
    "matrix_figure",
    "pictures_figure",
    "regions_figure",
    "scatter_figure",
    "scene_sheet",
    "spectrum_figure",
    "stacked_figure",
    "tradeoff_figure",
]
