"""What methods that model log-expression share: genes, scaling, training, and their outputs.

They are to log-normalised expression what `tenfold.count_models` is to counts.
"""
