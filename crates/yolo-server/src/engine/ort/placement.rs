//! Where ONNX Runtime ran each node of a model, read from the profile of a run.
//!
//! A provider that takes none of a model's nodes is no error to ONNX Runtime: it runs them on the CPU. So one profiled
//! run is asked before a server on a GPU becomes ready.

use std::collections::BTreeMap;

use serde::Deserialize;

/// ONNX Runtime's name of the CPU provider.
const CPU: &str = "CPUExecutionProvider";

/// Nodes that ran, by provider.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Placement(BTreeMap<String, Nodes>);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Nodes {
    all: usize,
    convolutions: usize,
}

#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    args: Arguments,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Arguments {
    op_name: String,
    provider: String,
}

impl Placement {
    /// Reads a profile as ONNX Runtime writes it: a JSON array of events, of which those of kernels name a provider.
    ///
    /// # Errors
    /// If it is none.
    pub fn read(profile: &str) -> Result<Self, serde_json::Error> {
        let events: Vec<Event> = serde_json::from_str(profile)?;
        let mut nodes = BTreeMap::<String, Nodes>::new();
        for Arguments { op_name, provider } in events.into_iter().map(|event| event.args) {
            if !provider.is_empty() {
                let of_provider = nodes.entry(provider).or_default();
                of_provider.all += 1;
                // FusedConv, ConvTranspose, QLinearConv, NhwcConv and so on.
                of_provider.convolutions += usize::from(op_name.contains("Conv"));
            }
        }
        Ok(Self(nodes))
    }

    /// Nodes that ran on a provider, by ONNX Runtime's name for it.
    pub fn nodes(&self, provider: &str) -> usize {
        self.0.get(provider).map_or(0, |nodes| nodes.all)
    }

    /// Convolutions that ran on the CPU.
    pub fn cpu_convolutions(&self) -> usize {
        self.0.get(CPU).map_or(0, |nodes| nodes.convolutions)
    }

    /// Fails unless `provider` ran the model: at least a node, and every convolution. A few nodes that compute shapes may
    /// run on the CPU: they cost nothing.
    ///
    /// # Errors
    /// A text that says what ran where.
    pub fn require(&self, provider: &str) -> Result<(), String> {
        let (nodes, on_cpu) = (self.nodes(provider), self.cpu_convolutions());
        if nodes > 0 && on_cpu == 0 {
            return Ok(());
        }
        Err(format!(
            "{provider} ran {nodes} nodes of the model, and the CPU {on_cpu} convolutions: the provider does not support \
             this model; export it anew with a current opset, or ask for another provider"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROFILE: &str = r#"[
        {"cat":"Session","name":"model_loading_uri","args":{}},
        {"cat":"Node","name":"conv_kernel_time","args":{"op_name":"FusedConv","provider":"CUDAExecutionProvider"}},
        {"cat":"Node","name":"shape_kernel_time","args":{"op_name":"Shape","provider":"CPUExecutionProvider"}}
    ]"#;

    #[test]
    fn shapes_on_the_cpu_are_no_fall_back_but_a_convolution_is() {
        let placement = Placement::read(PROFILE).unwrap();
        assert_eq!(placement.require("CUDAExecutionProvider"), Ok(()));
        let fallen = PROFILE.replace("CUDAExecutionProvider", CPU);
        let error = Placement::read(&fallen).unwrap().require("CUDAExecutionProvider").unwrap_err();
        assert!(error.contains("ran 0 nodes") && error.contains("the CPU 1 convolutions"), "{error}");
    }

    #[test]
    fn a_provider_that_ran_nothing_has_not_run_the_model() {
        let nothing = Placement::read("[]").unwrap();
        assert!(nothing.require("TensorrtExecutionProvider").is_err());
        assert!(Placement::read("[{]").is_err());
    }
}
