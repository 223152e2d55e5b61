"""How meta-gradients of many tasks are computed: batched, traced, in bounded memory."""
