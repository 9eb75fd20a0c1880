"""mmdetection's Swin, ResNet and ResNeXt checkpoints as teachers, without mmdetection."""
