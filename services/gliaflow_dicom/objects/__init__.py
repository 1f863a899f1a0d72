"""An answer as DICOM objects: segmentation, report and secondary capture."""
