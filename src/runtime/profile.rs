//! ONNX Runtime's profile: a file of JSON events.

use serde::Deserialize;

/// One run of one node.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeRun {
    /// The node's name.
    pub name: String,
    /// The operator whose kernel ran.
    pub op: String,
    /// Seconds.
    pub seconds: f64,
}

#[derive(Deserialize)]
struct Event {
    cat: String,
    name: String,
    /// Microseconds.
    #[serde(default)]
    dur: f64,
    #[serde(default)]
    args: Args,
}

#[derive(Default, Deserialize)]
struct Args {
    #[serde(default)]
    op_name: String,
}

/// Runs of nodes in the order they happened.
pub(super) fn parse(json: &str) -> Result<Vec<NodeRun>, serde_json::Error> {
    let events: Vec<Event> = serde_json::from_str(json)?;
    let run = |event: Event| {
        let name = event.name.strip_suffix("_kernel_time").filter(|_| event.cat == "Node")?;
        Some(NodeRun { name: name.into(), op: event.args.op_name, seconds: event.dur / 1e6 })
    };
    Ok(events.into_iter().filter_map(run).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_nodes_are_kept_and_nothing_else() {
        let json = r#"[
{"cat" : "Session","pid" :1,"tid" :1,"dur" :16071,"ts" :3,"ph" : "X","name" :"model_loading_uri","args" : {}},
{"cat" : "Node","pid" :1,"tid" :1,"dur" :1500,"ts" :9,"ph" : "X","name" :"a.b/Gemm_kernel_time","args" : {"op_name" : "Gemm","provider" : "CPUExecutionProvider","input_type_shape" : [{"float":[1]}]}}
]"#;
        let expected = NodeRun { name: "a.b/Gemm".into(), op: "Gemm".into(), seconds: 0.0015 };
        assert_eq!(parse(json).ok(), Some(vec![expected]));
        assert!(parse("[").is_err());
    }
}
