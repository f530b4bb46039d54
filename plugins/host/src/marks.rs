//! The environment variables by which a command, and everything it starts, can be told from the rest of the machine.

use farrier_action::NodeInfo;

/// The run that a command belongs to.
pub(crate) const RUN: &str = "FARRIER_RUN";
/// The node.
pub(crate) const NODE: &str = "FARRIER_NODE";
/// The effect id, the same for every attempt.
pub(crate) const EFFECT: &str = "FARRIER_EFFECT";
/// How names begin that runbooks cannot set.
pub(crate) const RESERVED: &str = "FARRIER_";

/// The marks of one node's commands.
#[derive(Debug, Clone)]
pub struct Marks {
    run: String,
    node: String,
    effect: String,
}

impl Marks {
    /// Those of a node.
    pub fn of(node: &NodeInfo) -> Marks {
        Marks {
            run: node.run.to_string(),
            // The key of an item may come from data, and no variable can hold a NUL.
            node: node.node.to_string().replace('\0', "\u{fffd}"),
            effect: node.effect_id.clone(),
        }
    }

    /// Names and values.
    pub fn variables(&self) -> [(&'static str, &str); 3] {
        [(RUN, &self.run), (NODE, &self.node), (EFFECT, &self.effect)]
    }
}
