"""SpIEL: sparse fine-tuning that keeps a fixed number of tuned weights and changes which they are.

Ansell et al. 2024, "Scaling Sparse Fine-Tuning to Large Language Models" (arXiv:2401.16405). Of every targeted matrix k
weights are tuned: positions and deltas are all that is trained and kept. Every so often the deltas that have moved
least are dropped, and the positions that promise most take their place: by their accumulated gradients (SpIEL-AG, here
`ag`) or by the momenta that SM3 estimates for them (SpIEL-MA, here `ma`).

  `schedule`   when gradients of candidates are accumulated, when the support changes, and by how much.
  `kernel`     the linear map with deltas in its weights, and the gradients that it gives.
  `optimizer`  Adam with an age for each weight, and sparse SM3.
  `selection`  which weights go and which come.
  `method`     the tuning method.
  `tensors`    positions and values as the authors' code names and orders them.
"""
