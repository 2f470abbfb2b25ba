"""Parts that networks are made of; a method composes them.

``mlp``: `Layer`, `MLP` (sparse or dense input, covariates, norms, dropout) · ``priors``: `Gaussian`
(draws, densities, KL) ·
``encoders``: `GaussianEncoder` (x → q(z)) · ``decoders``: `CountDecoder` (z → likelihood of counts) · ``likelihoods``:
`count_nll` and its kin · ``autoencoder``: `ConditionalVAE`, an encoder, a prior and a decoder.
"""
