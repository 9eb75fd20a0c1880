"""Figures of detections, feature maps, masks, curves and tables of runs; returned, never shown.

Every function returns a closed `matplotlib` figure: a notebook cell that ends in it shows it once,
a script calls `savefig`. One style for all; the colours are Okabe and Ito's and the maps viridis,
which colour-blind readers can tell apart.
"""

from dfmsd.viz.charts import bars_figure as bars_figure
from dfmsd.viz.charts import curves_figure as curves_figure
from dfmsd.viz.charts import differences_figure as differences_figure
from dfmsd.viz.charts import tradeoff_figure as tradeoff_figure
from dfmsd.viz.maps import feature_maps_figure as feature_maps_figure
from dfmsd.viz.maps import keep_masks_figure as keep_masks_figure
from dfmsd.viz.maps import levels_figure as levels_figure
from dfmsd.viz.maps import masks_figure as masks_figure
from dfmsd.viz.pictures import detections_figure as detections_figure
from dfmsd.viz.pictures import pictures_figure as pictures_figure
from dfmsd.viz.pictures import regions_figure as regions_figure
from dfmsd.viz.pictures import scene_sheet as scene_sheet
from dfmsd.viz.plots import channels_figure as channels_figure
from dfmsd.viz.plots import matrix_figure as matrix_figure
from dfmsd.viz.plots import scatter_figure as scatter_figure
from dfmsd.viz.plots import stacked_figure as stacked_figure
