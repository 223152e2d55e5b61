"""The update of the meta-parameters: outer optimizers, schedules, the trust region."""
