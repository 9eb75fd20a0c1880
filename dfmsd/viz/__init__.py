"""Figures of detections, feature maps, masks, curves and tables of runs; returned, never shown.

Every function returns a closed `matplotlib` figure: a notebook cell that ends in it shows it once,
a script calls `savefig`. Its colours are Okabe and Ito's, apart for colour-blind readers too.
Images are (3, H, W) or (1, H, W) in 0..1, boxes (n, 4) xyxy in absolute pixels. `title` stands
above all panels, `columns` are panels in a row; labels of axes name the unit. `ValueError`, naming
the argument: wrong shapes, lengths, names or ranges, no entries, NaN and infinity.
"""

# ruff: noqa: F401
from dfmsd.viz.charts import bars_figure, differences_figure, tradeoff_figure
from dfmsd.viz.curves import curves_figure, small_multiples_figure
from dfmsd.viz.maps import feature_maps_figure, keep_masks_figure, levels_figure, masks_figure
from dfmsd.viz.pictures import detections_figure, pictures_figure, regions_figure, scene_sheet
from dfmsd.viz.plots import channels_figure, matrix_figure, scatter_figure, stacked_figure
