"""How far a model moved from a reference, on given data.

With p the model, q the reference, y_{i,t} the supervised tokens of example i and w_{i,t} their weights, in nats:

    deviation           = mean over i of [ sum_t w (log p(y) - log q(y)) / sum_t w ]   Xie et al. 2024 (arXiv:2408.10642)
    log_ratio_per_token = sum_{i,t} w (log p(y) - log q(y)) / sum_{i,t} w
    kl_per_token        = sum_{i,t} w KL(q(. | context) || p(. | context)) / sum_{i,t} w

The deviation is a mean over examples of their own means, and not a divergence: it can be near zero or negative while the
model moves elsewhere. KL(q || p) sees the whole distribution, is never negative, and is zero only where nothing moved.
"""

