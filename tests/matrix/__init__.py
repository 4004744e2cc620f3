"""The matrix: small networks of the kinds that people quantise, the ways to quantise them, and one check of each layer.

Nothing here uses streamstats but `ways`, which corrects; what is right is decided by onnxruntime and torch.
"""
