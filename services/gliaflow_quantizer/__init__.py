"""``gliaflow quantize``: a bundle whose U-Net computes with 8-bit integers, and how much that changes its answers."""
