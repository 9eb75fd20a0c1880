"""From settings to records and tables: presets, runs, grids of runs, and what they say."""
