"""DICOM around the pipeline: answers as DICOM objects, and the node that a PACS sends series to."""
