//! Pure decision core: policy, observation, state and time in, a decision out.
