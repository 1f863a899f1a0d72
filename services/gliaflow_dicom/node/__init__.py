"""The DICOM node: receives series, spools them, submits the FLAIR series, and sends the answers on."""
