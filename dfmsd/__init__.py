"""DFMSD: dual feature masking stage-wise knowledge distillation for object detection.

Source: arXiv 2407.13147. Import the part you need, e.g. `from dfmsd.loss import DFMSDLoss`; the
README lists what each module is for.
"""
