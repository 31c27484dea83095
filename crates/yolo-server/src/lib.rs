//! The inference server: HTTP, batcher, engines, cache, knobs, metrics and drain.
