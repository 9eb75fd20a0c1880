"""COCO 2017 from its official archives: the table of them, a resumable download, safe unpacking."""

from dfmsd.download.coco2017 import get_coco as get_coco
from dfmsd.download.remote import DownloadError as DownloadError
