"""COCO-format folders and generated scenes: read, checked, downloaded, and grouped in batches."""
